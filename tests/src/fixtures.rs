//! What the tests are run with, as `cargo xtask test` prepared it.

use std::env;
use std::path::PathBuf;

fn given(name: &str) -> PathBuf {
    let Some(path) = env::var_os(name).map(PathBuf::from) else {
        panic!("{name} is not set; these tests are run by `cargo xtask test --e2e`");
    };
    assert!(
        path.exists(),
        "{name} names {}, which is not there",
        path.display()
    );
    path
}

/// The program `flashpan`, with all optimisations.
#[must_use]
pub fn flashpan() -> PathBuf {
    given("FLASHPAN_TEST_BIN")
}

/// A guest kernel with the base configuration, which `flashpan run` takes
/// unless another is named.
#[must_use]
pub fn kernel() -> PathBuf {
    given("FLASHPAN_KERNEL")
}

/// An EROFS image of Debian with Python and vim.
#[must_use]
pub fn debian() -> PathBuf {
    given("FLASHPAN_TEST_DEBIAN")
}

/// The same root file system as a directory.
#[must_use]
pub fn debian_directory() -> PathBuf {
    given("FLASHPAN_TEST_DEBIAN_DIR")
}

/// An EROFS image of Debian with programs that speak to a network.
#[must_use]
pub fn programs() -> PathBuf {
    given("FLASHPAN_TEST_PROGRAMS")
}

/// A directory with container images: an OCI layout `layout` with the images
/// `python` (several layers, with deletions) and `multi` (for two platforms),
/// and `box.tar`, an image by `docker save`.
#[must_use]
pub fn images() -> PathBuf {
    given("FLASHPAN_TEST_IMAGES")
}
