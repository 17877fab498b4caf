//! Names and the loopback interface.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::failure::Failure;
use crate::sys;

/// Longest host name that Linux takes.
const NAME_MAX: usize = 64;

/// Raises `lo`; the kernel gives it its addresses by itself.
pub(crate) fn loopback_up() -> nix::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    sys::interface_up(socket, "lo")
}

/// Sets the host name.
pub(crate) fn set_hostname(name: &str) -> Result<(), Failure> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let what = || format!("set the host name {name:?}");
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(allowed) {
        let why = format!("want 1 to {NAME_MAX} letters, digits, '-', '.' or '_'");
        return Err(Failure::new(what(), why));
    }
    nix::unistd::sethostname(name).map_err(|errno| Failure::system(what(), errno))
}

/// Writes `/etc/hostname` and `/etc/hosts` as docker does. What does not work
/// is returned: programs run without.
pub(crate) fn write_names(name: &str) -> Vec<String> {
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{name}\n"
    );
    let files = [
        ("/etc/hostname", format!("{name}\n")),
        ("/etc/hosts", hosts),
    ];
    files
        .iter()
        .filter_map(|(path, content)| {
            let error = replace(path, content.as_bytes()).err()?;
            Some(format!("write {path}: {error}"))
        })
        .collect()
}

fn replace(path: &str, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = std::path::Path::new(path).parent() {
        std::fs::create_dir_all(parent)?;
    }
    // The image decides what is there: a link is not followed and a FIFO not
    // waited for.
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    file.write_all(content)
}
