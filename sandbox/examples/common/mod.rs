//! What all examples need: a VM.

use std::error::Error;
use std::path::PathBuf;

use flashpan::{FsType, Root, Sandbox, SandboxBuilder};

/// A VM with the kernel that `FLASHPAN_KERNEL` names and the root image that is
/// the first argument.
pub fn builder() -> Result<SandboxBuilder, Box<dyn Error>> {
    let Some(kernel) = std::env::var_os("FLASHPAN_KERNEL").filter(|path| !path.is_empty()) else {
        return Err(
            "FLASHPAN_KERNEL is not set; set it to the path of a kernel, \
                    e.g. FLASHPAN_KERNEL=$(flashpan kernel build)"
                .into(),
        );
    };
    let Some(root) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err("there is no root image; give an EROFS image as the first argument".into());
    };
    let root = Root::new(root, FsType::Erofs);
    Ok(Sandbox::builder(kernel, root))
}
