//! Counters of the stack.

/// What happened since the stack was made. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Frames of the guest.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Flows that were asked for.
    pub asked: u64,
    /// Flows that were accepted.
    pub accepted: u64,
    /// Flows that were refused.
    pub refused: u64,
    /// Flows not asked for because there are too many.
    pub crowded: u64,
    /// Connections that the host has opened to the guest.
    pub opened: u64,
    /// Segments of no connection, answered with a reset.
    pub strays: u64,
    /// Frames dropped for their form.
    pub malformed: u64,
    /// Parts of packets, dropped.
    pub fragments: u64,
    /// Frames dropped for their protocol.
    pub protocols: u64,
    /// Frames dropped because they are for nobody here.
    pub receivers: u64,
    /// Packets dropped because they are from an address that the guest does not have.
    pub sources: u64,
    /// Datagrams that the host did not take in time, or that no flow had room for.
    pub datagrams_lost: u64,
    /// Datagrams of the host that do not fit on the link.
    pub datagrams_too_long: u64,
}
