//! A sequence of pieces of guest memory, used up from the front.

use vm_memory::VolatileSlice;

/// Pieces of guest memory that are one string of bytes to the device: nothing
/// may be concluded from where one ends (virtio 1.2 §2.7.4.1).
///
/// The guest can change the bytes at any moment: they are copied out once, and
/// the copy is what gets looked at.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// The first slice that is not used up.
    first: usize,
    len: usize,
    begun: bool,
}

impl<'m> Buffers<'m> {
    pub(super) fn clear(&mut self) {
        self.slices.clear();
        self.first = 0;
        self.len = 0;
        self.begun = false;
    }

    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// Whether the chain has a descriptor of this direction, be it empty.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn push(&mut self, slice: VolatileSlice<'m>) {
        self.len = self.len.saturating_add(slice.len());
        self.slices.push(slice);
    }

    /// Bytes that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces that are left.
    #[must_use]
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        self.slices.get(self.first..).unwrap_or_default()
    }

    /// Takes a fixed number of bytes from the front; none if there are fewer.
    pub fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.len >= N && self.read(&mut bytes) == N).then_some(bytes)
    }

    /// Copies bytes from the front to `out`; returns how many there were.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        self.consume(out.len(), |slice, done| {
            slice.copy_to(out.get_mut(done..).unwrap_or_default());
        })
    }

    /// Copies `data` to the front; returns how many bytes there was room for.
    pub fn write(&mut self, data: &[u8]) -> usize {
        self.consume(data.len(), |slice, done| {
            slice.copy_from(data.get(done..).unwrap_or_default());
        })
    }

    /// Takes the last byte off.
    pub fn take_last(&mut self) -> Option<VolatileSlice<'m>> {
        self.len = self.len.checked_sub(1)?;
        // Something is left, therefore the last piece is not used up.
        let last = self.slices.last_mut()?;
        let (rest, byte) = last.split_at(last.len().checked_sub(1)?).ok()?;
        *last = rest;
        if rest.is_empty() {
            self.slices.pop();
        }
        Some(byte)
    }

    /// Calls `use_slice` with the front pieces that make up `count` bytes, and
    /// with the number of bytes before each.
    fn consume(
        &mut self,
        count: usize,
        mut use_slice: impl FnMut(&VolatileSlice<'m>, usize),
    ) -> usize {
        let mut done = 0;
        while done < count
            && let Some(front) = self.slices.get_mut(self.first)
        {
            let piece = front.len().min(count - done);
            let Ok((now, later)) = front.split_at(piece) else {
                break;
            };
            use_slice(&now, done);
            done += piece;
            if later.is_empty() {
                self.first += 1;
            } else {
                *front = later;
            }
        }
        self.len = self.len.saturating_sub(done);
        done
    }
}
