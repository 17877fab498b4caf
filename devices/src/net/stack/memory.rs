//! What the buffers of all connections to the guest may take together.
//!
//! A buffer is memory as far as it was written to, and smoltcp begins at its start again
//! whenever it is empty: so it is kept from being written to further than its connection
//! was granted. That grows by use, and is given back when the connection ends.

/// What each connection has in any case: without more, it goes on whenever the guest has
/// acknowledged all.
pub(super) const LEAST: usize = 16 * 1024;

/// What a connection can come to have, and the size of its buffer.
pub(super) const MOST: usize = 1024 * 1024;

/// What there is for all connections together, besides.
const ALL: usize = 256 * 1024 * 1024;

/// No grant takes more of what is left than one part in so many: connections to come find
/// something too.
const SHARE: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Memory {
    left: usize,
}

/// What a connection was granted.
#[derive(Debug)]
pub(super) struct Grant(usize);

impl Memory {
    pub(super) fn new() -> Self {
        Self::of(ALL)
    }

    /// So much for all.
    pub(super) fn of(left: usize) -> Self {
        Self { left }
    }

    /// The bytes that nobody has.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Doubles a grant; false if it stays as it is.
    pub(super) fn grow(&mut self, grant: &mut Grant) -> bool {
        let Grant(held) = *grant;
        let more = held.min(MOST.saturating_sub(held));
        if more == 0 || more > self.left / SHARE {
            return false;
        }
        self.left = self.left.saturating_sub(more);
        *grant = Grant(held.saturating_add(more));
        true
    }

    /// A connection has ended.
    pub(super) fn end(&mut self, grant: &Grant) {
        let Grant(held) = grant;
        self.left = self.left.saturating_add(held.saturating_sub(LEAST));
    }
}

impl Grant {
    /// What each connection begins with.
    pub(super) fn least() -> Self {
        Self(LEAST)
    }

    /// How much may be written to a buffer to which `written` bytes were, since it was empty.
    pub(super) fn room(&self, written: usize) -> usize {
        match self.0 {
            // All of the buffer, round and round.
            MOST.. => MOST,
            held => held.saturating_sub(written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_doubles_up_to_the_whole_buffer() {
        let mut memory = Memory::new();
        let mut grant = Grant::least();
        assert_eq!(grant.room(LEAST), 0);
        let times = std::iter::repeat_with(|| memory.grow(&mut grant)).take_while(|&grew| grew);
        assert_eq!(times.count(), 6);
        assert_eq!(grant.room(usize::MAX), MOST);
        assert_eq!(memory.left(), ALL - (MOST - LEAST));
        memory.end(&grant);
        assert_eq!(memory.left(), ALL);
    }

    #[test]
    fn all_together_have_no_more_than_there_is() {
        let mut memory = Memory::new();
        let mut grants: Vec<_> = (0..12_000).map(|_| Grant::least()).collect();
        for grant in &mut grants {
            while memory.grow(grant) {}
        }
        let all: usize = grants.iter().map(|grant| grant.0 - LEAST).sum();
        assert_eq!(all + memory.left(), ALL);
        // The first have all that they can use, and those that come late still something.
        assert!(grants.iter().filter(|grant| grant.0 == MOST).count() > 200);
        assert!(grants.iter().filter(|grant| grant.0 > LEAST).count() > 400);
    }
}
