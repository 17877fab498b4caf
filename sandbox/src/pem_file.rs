//! Files with certificates and keys.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Most bytes of one: the authorities of all the world take a quarter of it.
const MOST: u64 = 1 << 20;

/// What a file has in it, for the setting `field`. A pipe is none, since whoever starts a VM
/// would wait for its other end.
pub(crate) fn read(field: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    contents(path).map_err(|error| {
        let shown = path.display();
        Error::config(
            field,
            format!("cannot read {shown}: {error}; name a file in PEM"),
        )
    })
}

fn contents(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}
