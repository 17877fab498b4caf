//! What a block request says (virtio 1.2 §5.2.6), once it is copied out of
//! guest memory.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::SECTOR;

/// Length of a request's header: `type`, `reserved`, `sector`.
pub(super) const HEADER_LEN: usize = 16;

/// Length of a range in the data of a discard or write-zeroes request:
/// `sector`, `num_sectors`, `flags`.
pub(super) const RANGE_LEN: usize = 16;

/// What the driver asks for. Positions are in sectors and not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Read from a sector on.
    In(u64),
    /// Write from a sector on.
    Out(u64),
    /// Make earlier writes durable.
    Flush,
    /// Tell the disk's name.
    GetId,
    /// The content of some ranges does not matter any more.
    Discard,
    /// Some ranges shall read as zeroes.
    WriteZeroes,
    /// Something that this device does not know.
    Unknown,
}

impl Request {
    pub(super) fn parse(header: [u8; HEADER_LEN]) -> Self {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => Self::In(sector),
            VIRTIO_BLK_T_OUT => Self::Out(sector),
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_GET_ID => Self::GetId,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Unknown,
        }
    }
}

/// One range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

impl Range {
    pub(super) fn parse(bytes: [u8; RANGE_LEN]) -> Self {
        let [
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            n0,
            n1,
            n2,
            n3,
            f0,
            f1,
            f2,
            f3,
        ] = bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }

    /// The driver would like the space to be given back.
    pub(super) fn unmap(&self) -> bool {
        self.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0
    }

    /// Flags that do not exist.
    pub(super) fn has_unknown_flags(&self) -> bool {
        self.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0
    }
}

/// Where `bytes` bytes from `sector` on begin, in bytes, if all of them are on
/// a disk of `capacity` sectors.
pub(super) fn position(sector: u64, bytes: u64, capacity: u64) -> Option<u64> {
    let start = sector.checked_mul(SECTOR)?;
    let end = start.checked_add(bytes)?;
    (end <= capacity.checked_mul(SECTOR)?).then_some(start)
}
