//! Names and the loopback interface.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flashpan_protocol::agent::{HostEntry, MAX_HOSTS};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::failure::Failure;
use crate::sys;
use crate::twin::Twin;

/// Longest host name that Linux takes.
const NAME_MAX: usize = 64;

/// Longest host name in DNS.
const HOST_MAX: usize = 253;

/// Raises `lo`; the kernel gives it its addresses by itself.
pub(crate) fn loopback_up() -> nix::Result<()> {
    sys::interface_up(any_socket()?, "lo")
}

/// The number of a network card.
pub(crate) fn card(name: &str) -> nix::Result<u32> {
    sys::interface_index(any_socket()?, name)
}

/// One to ask about interfaces by.
fn any_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
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

/// Checks the lines that `/etc/hosts` is to have besides its own. `writable` is
/// whether there is a place for them.
pub(crate) fn check_hosts(hosts: &[HostEntry], writable: bool) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure::new("add lines to /etc/hosts", why));
    if hosts.len() > MAX_HOSTS {
        let number = hosts.len();
        return refuse(format!("{number} are too many; want at most {MAX_HOSTS}"));
    }
    if !hosts.is_empty() && !writable {
        return refuse("the root is read-only; make it writable".to_owned());
    }
    // A blank, a line break or a comment would make another line of it.
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '#' | ':');
    for HostEntry { name, .. } in hosts {
        if name.is_empty() || name.len() > HOST_MAX || !name.chars().all(allowed) {
            return refuse(format!(
                "{name:.80?} is not a host name; want 1 to {HOST_MAX} bytes without blanks, \
                 control characters, '#' and ':'"
            ));
        }
    }
    Ok(())
}

/// Writes `/etc/hostname`, `/etc/hosts` and, if there is a `resolver`,
/// `/etc/resolv.conf`, as docker does, into the layer
/// `upper` of an overlay that is not mounted yet: going through the overlay
/// would copy `/etc` up first. `lower` is the root image, `more` what `/etc/hosts`
/// has besides, which was checked.
///
/// What does not work is returned: programs run without.
pub(crate) fn write_names(
    lower: &Path,
    upper: &Path,
    name: &str,
    more: &[HostEntry],
    resolver: Option<Ipv4Addr>,
) -> Vec<String> {
    let mut hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{name}\n"
    );
    for HostEntry { name, address } in more {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let etc = upper.join("etc");
    let twin = match Twin::make(etc.clone(), &lower.join("etc")) {
        Ok(twin) => twin,
        Err(error) => return vec![format!("write /etc/hostname and /etc/hosts: /etc: {error}")],
    };
    let mut files = vec![("hostname", format!("{name}\n")), ("hosts", hosts)];
    if let Some(resolver) = resolver {
        files.push(("resolv.conf", format!("nameserver {resolver}\n")));
    }
    let written = files.iter().filter_map(|(file, content)| {
        let error = replace(&etc.join(file), content.as_bytes()).err()?;
        Some(format!("write /etc/{file}: {error}"))
    });
    let mut warnings: Vec<String> = written.collect();
    if let Err(error) = twin.settle() {
        warnings.push(format!("set the times of /etc: {error}"));
    }
    warnings
}

/// Puts a new file at `path`, whatever was there: a file, a link, a whiteout.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?
        .write_all(content)
}

#[cfg(test)]
mod tests;
