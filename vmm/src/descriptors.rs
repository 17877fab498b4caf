//! How many descriptors the process may have, and its guest's connections with them.

#![allow(unsafe_code)] // getrlimit(2) and setrlimit(2) have no safe wrapper in std.

/// Descriptors that connections of the guest leave for the machine itself and for
/// what its supervisor hands over: a machine of most disks and vCPUs has about
/// half as many.
const RESERVE: usize = 256;

/// Connections that there have to be: for the agent, and some programs.
const LEAST: usize = 16;

/// How many connections a guest may have in a process with this limit.
pub(crate) fn for_connections(limit: usize) -> usize {
    limit.saturating_sub(RESERVE).max(LEAST)
}

/// The same for a guest with a network card, and how many flows of it: what there is is
/// shared.
pub(crate) fn for_connections_and_flows(limit: usize) -> (usize, usize) {
    let all = for_connections(limit);
    let connections = flashpan_devices::vsock::MAX_CONNECTIONS.min(all / 2);
    (connections, all.saturating_sub(connections))
}

/// The process's limit; `None` if it has none, or it is not to be had.
pub(crate) fn limit() -> Option<usize> {
    let limit = get()?;
    (limit.rlim_cur != libc::RLIM_INFINITY)
        .then(|| usize::try_from(limit.rlim_cur).ok())
        .flatten()
}

/// Lifts the soft limit to the hard one: each vsock connection takes a
/// descriptor, and the usual soft limit is less than the device offers.
pub fn raise_limit() {
    let Some(mut limit) = get() else { return };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to `limit`. Without success the guest has fewer
    // connections.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

fn get() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to `limit`.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (got == 0).then_some(limit)
}
