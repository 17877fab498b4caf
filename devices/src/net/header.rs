//! What precedes every frame in a ring: `struct virtio_net_hdr` (virtio 1.2
//! §5.1.6), in its long form.

/// Length of the header: with `num_buffers`, which version 1 always has.
pub const HEADER_LEN: usize = 12;

const F_NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Where the checksum of a frame begins, which is still to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the sum begins, in bytes from the start of the frame.
    pub start: u16,
    /// Where it is to be put, in bytes from there.
    pub offset: u16,
}

/// How a frame that is too long for the link is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Whether it is IPv6.
    pub ipv6: bool,
    /// Length of all its headers, in bytes.
    pub header_len: u16,
    /// Payload of each segment, in bytes.
    pub segment: u16,
}

/// The header of a frame that goes to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum that the guest need not look at, or has to make.
    pub checksum: Option<PartialChecksum>,
    /// For a frame longer than the link takes; needs `checksum`.
    pub segmentation: Option<Segmentation>,
}

impl Header {
    /// Its bytes, for a frame in so many buffers.
    #[must_use]
    pub fn to_bytes(self, buffers: u16) -> [u8; HEADER_LEN] {
        let flags = if self.checksum.is_some() {
            F_NEEDS_CSUM
        } else {
            0
        };
        let (gso_type, header_len, segment) = match self.segmentation {
            None => (GSO_NONE, 0, 0),
            Some(cut) if cut.ipv6 => (GSO_TCPV6, cut.header_len, cut.segment),
            Some(cut) => (GSO_TCPV4, cut.header_len, cut.segment),
        };
        let (start, offset) = (self.checksum).map_or((0, 0), |sum| (sum.start, sum.offset));
        let [h0, h1] = header_len.to_le_bytes();
        let [g0, g1] = segment.to_le_bytes();
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        let [b0, b1] = buffers.to_le_bytes();
        [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, b0, b1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_frame_has_zeroes_and_its_buffers() {
        let expected = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(Header::default().to_bytes(1), expected);
    }

    #[test]
    fn a_long_frame_says_how_it_is_cut() {
        let header = Header {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            segmentation: Some(Segmentation {
                ipv6: false,
                header_len: 54,
                segment: 1460,
            }),
        };
        let expected = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 3, 1];
        assert_eq!(header.to_bytes(0x103), expected);
    }
}
