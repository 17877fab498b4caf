//! Counters of the device.

/// What happened since the device was made. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Times that the event loop ran the device.
    pub wakeups: u64,
    /// Interrupts raised for used buffers.
    pub interrupts: u64,
    /// Packets taken from the guest, bad ones included.
    pub tx_packets: u64,
    /// Bytes of payload that the guest sent on connections.
    pub tx_bytes: u64,
    /// Packets given to the guest.
    pub rx_packets: u64,
    /// Bytes of payload given to the guest.
    pub rx_bytes: u64,
    /// Connections made in either direction.
    pub connected: u64,
    /// Connections that were asked for and not made.
    pub refused: u64,
    /// RST packets given to the guest.
    pub resets_sent: u64,
    /// RST packets not sent because too many were waiting.
    pub resets_dropped: u64,
    /// `CREDIT_UPDATE` packets given to the guest.
    pub credit_updates: u64,
    /// Packets dropped because their source was not the guest's CID.
    pub spoofed: u64,
    /// Packets refused for their form: too short, too long, unknown type or
    /// operation, or not allowed in the state of their connection.
    pub malformed: u64,
    /// Rings given up because the driver broke the rules.
    pub broken_rings: u64,
}
