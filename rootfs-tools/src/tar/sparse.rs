//! Maps of sparse files, as GNU tar has written them over the years.

use super::Segment;
use super::header::number;
use super::pax::decimal;

/// Most pieces that a sparse file may have: 4 MiB of memory.
pub(super) const SEGMENTS_MAX: usize = 1 << 18;

/// Adds the pieces in `bytes` (24 for each: offset and length, as in headers)
/// to `map`; false if they cannot be read. An empty one ends the list.
pub(super) fn add_old(map: &mut Vec<Segment>, bytes: &[u8]) -> bool {
    for pair in bytes.chunks_exact(24) {
        let (offset, length) = pair.split_at(12);
        if offset.first() == Some(&0) {
            return true;
        }
        let unsigned = |field| number(field).and_then(|value| u64::try_from(value).ok());
        let (Some(offset), Some(length)) = (unsigned(offset), unsigned(length)) else {
            return false;
        };
        if map.len() >= SEGMENTS_MAX {
            return false;
        }
        map.push(Segment { offset, length });
    }
    true
}

/// Reads the map that version 1.0 puts before the data: decimal numbers, each
/// with a newline; first the number of pieces, then their offsets and lengths.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    digits: Vec<u8>,
    count: Option<usize>,
    offset: Option<u64>,
    pub(super) map: Vec<Segment>,
}

impl MapReader {
    /// Takes a block; true when the map is complete, `None` if it is not one.
    pub(super) fn block(&mut self, block: &[u8]) -> Option<bool> {
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return None;
                }
                continue;
            }
            let value = decimal(&self.digits)?;
            self.digits.clear();
            match (self.count, self.offset.take()) {
                (None, _) => {
                    let count = usize::try_from(value).ok()?;
                    if count > SEGMENTS_MAX {
                        return None;
                    }
                    self.count = Some(count);
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.map.push(Segment {
                    offset,
                    length: value,
                }),
            }
            if self.count == Some(self.map.len()) {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// Are the pieces in order, within `size`, and of `stored` bytes together?
pub(super) fn is_valid(map: &[Segment], size: u64, stored: u64) -> bool {
    let mut end = 0;
    let mut sum = 0_u64;
    for segment in map {
        let Some(stop) = segment.offset.checked_add(segment.length) else {
            return false;
        };
        if segment.offset < end || stop > size {
            return false;
        }
        end = stop;
        sum = sum.saturating_add(segment.length);
    }
    sum == stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_before_the_data_may_go_over_blocks() {
        let mut reader = MapReader::default();
        assert_eq!(reader.block(b"2\n0\n1"), Some(false));
        assert_eq!(reader.block(b"0\n40\n"), Some(false));
        assert_eq!(reader.block(b"5\n\0\0\0"), Some(true));
        assert_eq!(
            reader.map,
            [
                Segment {
                    offset: 0,
                    length: 10
                },
                Segment {
                    offset: 40,
                    length: 5
                }
            ]
        );
        assert_eq!(MapReader::default().block(b"0\n"), Some(true));
        assert_eq!(MapReader::default().block(b"x\n"), None);
        assert_eq!(MapReader::default().block(b"\n"), None);
        assert_eq!(MapReader::default().block(b"999999999\n"), None);
        assert_eq!(MapReader::default().block(&[b'1'; 512]), None);
    }

    #[test]
    fn pieces_must_not_overlap_or_go_beyond_the_end() {
        let map = |pairs: &[(u64, u64)]| {
            pairs
                .iter()
                .map(|(offset, length)| Segment {
                    offset: *offset,
                    length: *length,
                })
                .collect::<Vec<_>>()
        };
        assert!(is_valid(&map(&[(0, 5), (5, 5), (20, 0)]), 20, 10));
        assert!(!is_valid(&map(&[(0, 5), (4, 5)]), 20, 10), "overlap");
        assert!(!is_valid(&map(&[(4, 5), (0, 1)]), 20, 6), "order");
        assert!(!is_valid(&map(&[(16, 5)]), 20, 5), "beyond the end");
        assert!(!is_valid(&map(&[(u64::MAX, 5)]), u64::MAX, 5), "overflow");
        assert!(!is_valid(&map(&[(0, 5)]), 20, 6), "not all stored");
    }
}
