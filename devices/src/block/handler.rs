//! Answers one request: chain + disk → status and bytes written.

use std::io::{self, ErrorKind};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

use super::disk::{Disk, is_unsupported};
use super::metrics::{BlockMetrics, count};
use super::request::{HEADER_LEN, Range, Request, position};
use super::{
    FLUSH_COST, ID_LEN, MAX_DATA_BYTES, MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SECTOR,
};
use crate::ring::{Buffers, Chain, RingError, Served};

/// What a request may touch.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) disk: Disk,
    /// In sectors.
    pub(super) capacity: u64,
    pub(super) read_only: bool,
    pub(super) id: [u8; ID_LEN],
}

/// A request on its way through the functions here.
struct Job<'a> {
    /// What was negotiated.
    features: u64,
    metrics: &'a BlockMetrics,
    /// See [`Served::cost`].
    cost: u64,
    /// See [`Answer::moved`].
    moved: u64,
}

/// What answering a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) served: Served,
    /// Bytes for the limit of bytes: data that was asked of the file, and zeroes,
    /// which may have to be written. A discard moves nothing.
    pub(super) moved: u64,
}

/// Why a request fails; the driver sees it in the status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Io,
    /// The host has no room. To the driver it is an error like any other:
    /// virtio 1.2 §5.2.6 has no status for it.
    NoSpace,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io,
        }
    }
}

impl Backend {
    /// Answers the request in `chain` under the negotiated `features`. Returns
    /// the number of bytes written, counted from the start of the writable
    /// part, what the request cost beside its data, and what counts for limits.
    ///
    /// Header, data and status are found by position, not by descriptor
    /// (virtio 1.2 §2.7.4.1): the first 16 readable bytes, the last writable
    /// byte, and what is between.
    pub(super) fn answer(
        &self,
        chain: &mut Chain<'_>,
        features: u64,
        metrics: &BlockMetrics,
    ) -> Result<Answer, RingError> {
        // Without a status byte the driver cannot be told anything.
        let status = chain.writable.take_last().ok_or(RingError::ShortRequest)?;
        let room = chain.writable.len();
        let mut job = Job {
            features,
            metrics,
            cost: 0,
            moved: 0,
        };
        let (code, written) = match self.execute(chain, &mut job) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(failure) => {
                count(&metrics.failures, 1);
                if failure == Failure::NoSpace {
                    count(&metrics.no_space, 1);
                }
                let code = match failure {
                    Failure::Io | Failure::NoSpace => VIRTIO_BLK_S_IOERR,
                    Failure::Unsupported => VIRTIO_BLK_S_UNSUPP,
                };
                (code, 0)
            }
        };
        status.copy_from(&[u8::try_from(code).unwrap_or(u8::MAX)]);
        // The status byte counts only if there is no gap before it: the driver
        // may rely on every byte up to `len` (virtio 1.2 §2.7.8.2).
        let len = if written == room { room + 1 } else { written };
        let served = Served {
            written: u32::try_from(len).unwrap_or(u32::MAX),
            cost: job.cost,
            last: false,
        };
        let moved = job.moved;
        Ok(Answer { served, moved })
    }

    /// Returns the bytes written in front of the status byte.
    fn execute(&self, chain: &mut Chain<'_>, job: &mut Job<'_>) -> Result<usize, Failure> {
        let (features, metrics) = (job.features, job.metrics);
        let header: [u8; HEADER_LEN] = chain.readable.take_array().ok_or(Failure::Io)?;
        match Request::parse(header) {
            Request::In(sector) => {
                let offset = self.locate(sector, &chain.writable)?;
                let data = &chain.writable;
                job.moved = bytes(data);
                self.disk.read(data.slices(), offset)?;
                count(&metrics.reads, 1);
                count(&metrics.read_bytes, bytes(data));
                Ok(data.len())
            }
            Request::Out(sector) => {
                let data = &chain.readable;
                let offset = self.locate(sector, data)?;
                self.check_writable()?;
                job.moved = bytes(data);
                self.disk.write(data.slices(), offset)?;
                self.settle(job)?;
                count(&metrics.writes, 1);
                count(&metrics.written_bytes, bytes(data));
                Ok(0)
            }
            Request::Flush => {
                self.flush(job)?;
                Ok(0)
            }
            Request::GetId => Ok(chain.writable.write(&self.id)),
            Request::Discard if has(features, VIRTIO_BLK_F_DISCARD) => {
                self.discard(&mut chain.readable, job)?;
                self.settle(job)?;
                count(&metrics.discards, 1);
                Ok(0)
            }
            Request::WriteZeroes if has(features, VIRTIO_BLK_F_WRITE_ZEROES) => {
                self.write_zeroes(&mut chain.readable, job)?;
                self.settle(job)?;
                count(&metrics.discards, 1);
                Ok(0)
            }
            Request::Discard | Request::WriteZeroes | Request::Unknown => Err(Failure::Unsupported),
        }
    }

    /// The position of `data` on the disk, in bytes. Whole sectors only
    /// (virtio 1.2 §5.2.6.1), no more than was offered (§5.2.4), all of them on
    /// the disk (§5.2.6.2).
    fn locate(&self, sector: u64, data: &Buffers<'_>) -> Result<u64, Failure> {
        let len = bytes(data);
        if !len.is_multiple_of(SECTOR) || len > MAX_DATA_BYTES {
            return Err(Failure::Io);
        }
        position(sector, len, self.capacity).ok_or(Failure::Io)
    }

    /// A disk that was offered with `VIRTIO_BLK_F_RO` is never written
    /// (virtio 1.2 §5.2.6.2).
    fn check_writable(&self) -> Result<(), Failure> {
        if self.read_only {
            Err(Failure::Io)
        } else {
            Ok(())
        }
    }

    /// A driver without `VIRTIO_BLK_F_FLUSH` has no way to ask for it: what is
    /// written is durable at once (virtio 1.2 §5.2.6.2).
    fn settle(&self, job: &mut Job<'_>) -> Result<(), Failure> {
        if has(job.features, VIRTIO_BLK_F_FLUSH) {
            return Ok(());
        }
        self.flush(job)
    }

    fn flush(&self, job: &mut Job<'_>) -> Result<(), Failure> {
        job.cost = job.cost.saturating_add(FLUSH_COST);
        self.disk.flush()?;
        count(&job.metrics.flushes, 1);
        Ok(())
    }

    fn discard(&self, data: &mut Buffers<'_>, job: &mut Job<'_>) -> Result<(), Failure> {
        let range = data.take_array().map(Range::parse).ok_or(Failure::Io)?;
        if !data.is_empty() {
            return Err(Failure::Io);
        }
        // `unmap` means nothing here and must not be set (§5.2.6.2).
        if range.unmap() || range.has_unknown_flags() {
            return Err(Failure::Unsupported);
        }
        let (offset, len) = self.extent(&range, MAX_DISCARD_SECTORS)?;
        if len == 0 {
            return Ok(());
        }
        job.cost = job.cost.saturating_add(len);
        match self.disk.punch_hole(offset, len) {
            // A hint: the device may keep the content.
            Err(error) if !is_unsupported(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, data: &mut Buffers<'_>, job: &mut Job<'_>) -> Result<(), Failure> {
        let range = data.take_array().map(Range::parse).ok_or(Failure::Io)?;
        if !data.is_empty() {
            return Err(Failure::Io);
        }
        if range.has_unknown_flags() {
            return Err(Failure::Unsupported);
        }
        let (offset, len) = self.extent(&range, MAX_WRITE_ZEROES_SECTORS)?;
        if len == 0 {
            return Ok(());
        }
        job.cost = job.cost.saturating_add(len);
        job.moved = len;
        if range.unmap() {
            match self.disk.punch_hole(offset, len) {
                Err(error) if is_unsupported(&error) => {}
                result => return Ok(result?),
            }
        }
        Ok(self.disk.zero(offset, len)?)
    }

    /// Start and length of a range in bytes.
    fn extent(&self, range: &Range, max_sectors: u32) -> Result<(u64, u64), Failure> {
        self.check_writable()?;
        let len = u64::from(range.sectors) * SECTOR;
        if range.sectors > max_sectors {
            return Err(Failure::Io);
        }
        let offset = position(range.sector, len, self.capacity).ok_or(Failure::Io)?;
        Ok((offset, len))
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// At most 2^32, as a chain is.
fn bytes(data: &Buffers<'_>) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}
