//! Disks against drivers that keep to the rules and drivers that do not.
//! `docs/devices.md` lists the tests by class.

mod hostile;
mod limits;
mod ranges;
mod requests;

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Block, SECTOR};
use crate::testing::{Driver, Segment};

/// `VIRTIO_BLK_T_IN` and so on.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// `VIRTIO_BLK_S_OK` and so on.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the status byte is before the device writes it.
const UNTOUCHED: u8 = 0xa5;

/// Everything that is offered.
const ALL: u64 = u64::MAX;

/// Capacity of the disks here, in sectors.
const SECTORS: u64 = 64;

/// A disk whose sectors are filled with their number plus one.
struct Fixture {
    driver: Driver<Block>,
    file: File,
}

fn image() -> File {
    let file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..SECTORS * SECTOR)
        .map(|at| (at / SECTOR + 1) as u8)
        .collect();
    file.write_all_at(&content, 0).unwrap();
    file
}

fn block(file: &File, read_only: bool) -> Block {
    Block::new(file.try_clone().unwrap(), read_only, "a disk").unwrap()
}

impl Fixture {
    fn new() -> Self {
        Self::with(ALL, false)
    }

    fn with(features: u64, read_only: bool) -> Self {
        let file = image();
        let driver = Driver::new(block(&file, read_only), features);
        Self { driver, file }
    }

    /// The content of the file.
    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Makes one request as Linux does: header, data, status. Returns the
    /// status and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Segment]) -> (u8, u32) {
        let header = self.driver.readable(&header(kind, sector));
        let status = self.driver.writable(1);
        let segments = [header].into_iter().chain(data.iter().copied());
        let segments: Vec<_> = segments.chain([status]).collect();
        let len = self.driver.request(0, &segments);
        (self.driver.content(status)[0], len)
    }

    /// Reads `len` bytes; returns status, used length and data.
    fn read(&mut self, sector: u64, len: usize) -> (u8, u32, Vec<u8>) {
        let data = self.driver.writable(len);
        let (status, used) = self.request(IN, sector, &[data]);
        (status, used, self.driver.content(data))
    }

    /// Writes `data`; returns the status.
    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let data = self.driver.readable(data);
        let (status, _) = self.request(OUT, sector, &[data]);
        status
    }

    /// Makes a discard or write-zeroes request of `ranges`.
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|range| range_bytes(*range))
            .collect();
        let data = self.driver.readable(&bytes);
        let (status, _) = self.request(kind, 0, &[data]);
        status
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range_bytes((sector, sectors, flags): (u64, u32, u32)) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
