//! Images that VMs are made from: a VM that stays has a name of its own for its image,
//! so that the image stays when its name comes to mean another one.

use flashpan_rootfs::store::{Error, Store};

use crate::failure::{Failure, say};

/// How such names begin; no registry is called so.
const PINNED: &str = "flashpan.vm/";

/// Whether a name of an image is one of a VM's.
pub(crate) fn is_pin(name: &str) -> bool {
    name.starts_with(PINNED)
}

/// Gives the image of a VM its name for it.
pub(crate) fn pin(vm: &str, image: &str) -> Result<(), Failure> {
    let store = Store::user().map_err(Failure::new)?;
    let named = store.tag(image, &format!("{PINNED}{vm}"), &|_| {});
    named.map(drop).map_err(Failure::new)
}

/// Takes away the name that a VM had for its image, and with the last name of an image its
/// files. Only that of this VM: another's may be in another place. A failure is told and
/// no more.
pub(crate) fn release(vm: &str) {
    let name = format!("{PINNED}{vm}");
    let released = Store::user().and_then(|store| store.remove(&name, true));
    match released {
        // Most VMs have none.
        Ok(_) | Err(Error::NotFound(_)) => {}
        Err(why) => say(
            "warning",
            &format!("cannot let go of the image {name}: {why}; flashpan image rm does it"),
        ),
    }
}
