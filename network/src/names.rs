//! Which names an address stands for: those that it was told to the guest for.
//!
//! A guest connects to addresses. What it may reach is said in names, so that every answer
//! to a question for a name is remembered here before the guest gets it. Or each name has
//! an address of its own that nothing else has ([`Names::synthetic`]).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::address::plain;
use crate::host::Name;

/// Most addresses that are remembered: those of a guest that looks at very many hosts.
const MAX_ADDRESSES: usize = 4096;

/// Most names of one address. Hosts of large networks share addresses; what a guest uses of
/// one within an hour are a few.
const MAX_NAMES: usize = 16;

/// Most pairs of a name and an address, of a few hundred bytes each.
const MAX_PAIRS: usize = 8 * 1024;

/// How long an answer is remembered at least: programs keep addresses for longer than they
/// were told to.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// How long it is remembered at most.
const KEPT_AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Most names with an address of their own. There are four times as many addresses; so
/// many names take a few megabytes.
const MAX_SYNTHETIC: u16 = 16 * 1024;

/// What is remembered of answers, and the addresses of names of their own.
#[derive(Debug, Default)]
pub struct Names {
    learned: Mutex<Learned>,
    synthetic: Mutex<Synthetic>,
}

impl Names {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers that `name` has these addresses, for `ttl` and for an hour at least. The
    /// oldest are forgotten for it if there are too many.
    pub fn learn(&self, name: &Name, addresses: &[IpAddr], ttl: Duration) {
        self.learn_at(name, addresses, ttl, Instant::now());
    }

    fn learn_at(&self, name: &Name, addresses: &[IpAddr], ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(KEPT, KEPT_AT_MOST);
        let mut learned = locked(&self.learned);
        for address in addresses {
            learned.add(name, plain(*address), until);
        }
    }

    /// The names that an address stands for.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Vec<Name> {
        self.of_at(address, Instant::now())
    }

    fn of_at(&self, address: IpAddr, now: Instant) -> Vec<Name> {
        let learned = locked(&self.learned);
        let pairs = learned.names.get(&plain(address));
        let valid = pairs.into_iter().flatten().filter(|pair| pair.until > now);
        valid.map(|pair| pair.name.clone()).collect()
    }

    /// The addresses that a name was told to have.
    #[must_use]
    pub fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        self.addresses_at(name, Instant::now())
    }

    fn addresses_at(&self, name: &Name, now: Instant) -> Vec<IpAddr> {
        let learned = locked(&self.learned);
        let is_valid = |address: &&IpAddr| {
            let pairs = learned.names.get(*address);
            let mut pairs = pairs.into_iter().flatten();
            pairs.any(|pair| pair.name == *name && pair.until > now)
        };
        let addresses = learned.addresses.get(name);
        (addresses.into_iter().flatten().filter(is_valid).copied()).collect()
    }

    /// The addresses that stand for this name and for no other: of 198.19.0.0/16, and of
    /// fdf1:a5f1:a5f2::/64. They stay the same while they are used. None if there are too
    /// many names, and each was used within the hour.
    #[must_use]
    pub fn synthetic(&self, name: &Name) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.synthetic_at(name, Instant::now())
    }

    fn synthetic_at(&self, name: &Name, now: Instant) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let number = locked(&self.synthetic).number(name, MAX_SYNTHETIC, now)?;
        let [high, low] = number.to_be_bytes();
        let ipv4 = Ipv4Addr::new(198, 19, high, low);
        let ipv6 = Ipv6Addr::new(0xfdf1, 0xa5f1, 0xa5f2, 0, 0, 0, 0, number);
        Some((ipv4, ipv6))
    }

    /// The name that such an address stands for, which is used with this.
    #[must_use]
    pub fn of_synthetic(&self, address: IpAddr) -> Option<Name> {
        let number = synthetic_number(address)?;
        locked(&self.synthetic).name(number, Instant::now())
    }
}

/// Whether an address is one of those that stand for a name, known or not.
#[must_use]
pub fn is_synthetic(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(address) => matches!(address.octets(), [198, 19, ..]),
        IpAddr::V6(address) => {
            matches!(address.segments(), [0xfdf1, 0xa5f1, 0xa5f2, 0, ..])
        }
    }
}

fn synthetic_number(address: IpAddr) -> Option<u16> {
    match plain(address) {
        IpAddr::V4(address) => match address.octets() {
            [198, 19, high, low] => Some(u16::from_be_bytes([high, low])),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0xfdf1, 0xa5f1, 0xa5f2, 0, 0, 0, 0, number] => Some(number),
            _ => None,
        },
    }
}

/// What a lock guards is whole at each moment, whoever held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pairs of a name and an address.
#[derive(Debug, Default)]
struct Learned {
    names: HashMap<IpAddr, Vec<Pair>>,
    addresses: HashMap<Name, Vec<IpAddr>>,
    /// All pairs by their age.
    ages: BTreeMap<u64, (IpAddr, Name)>,
    next: u64,
}

#[derive(Debug)]
struct Pair {
    name: Name,
    until: Instant,
    age: u64,
}

impl Learned {
    fn add(&mut self, name: &Name, address: IpAddr, until: Instant) {
        let age = self.next;
        self.next += 1;
        let pairs = self.names.entry(address).or_default();
        if let Some(pair) = pairs.iter_mut().find(|pair| pair.name == *name) {
            self.ages.remove(&pair.age);
            // An older answer may have been valid for longer, and still be in use.
            pair.until = pair.until.max(until);
            pair.age = age;
        } else {
            let pair = Pair {
                name: name.clone(),
                until,
                age,
            };
            pairs.push(pair);
            let addresses = self.addresses.entry(name.clone()).or_default();
            addresses.push(address);
        }
        let oldest = pairs.iter().map(|pair| pair.age).min();
        let is_full = pairs.len() > MAX_NAMES;
        self.ages.insert(age, (address, name.clone()));
        if let Some(oldest) = oldest.filter(|_| is_full) {
            self.forget(oldest);
        }
        while self.ages.len() > MAX_PAIRS || self.names.len() > MAX_ADDRESSES {
            let Some((&oldest, _)) = self.ages.first_key_value() else {
                break;
            };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, age: u64) {
        let Some((address, name)) = self.ages.remove(&age) else {
            return;
        };
        if let Some(pairs) = self.names.get_mut(&address) {
            pairs.retain(|pair| pair.age != age);
            if pairs.is_empty() {
                self.names.remove(&address);
            }
        }
        if let Some(addresses) = self.addresses.get_mut(&name) {
            addresses.retain(|known| *known != address);
            if addresses.is_empty() {
                self.addresses.remove(&name);
            }
        }
    }
}

/// Names with a number each.
#[derive(Debug, Default)]
struct Synthetic {
    numbers: HashMap<Name, u16>,
    /// The names by their numbers, the first of which is 1, and when each was last used.
    names: Vec<(Name, Instant)>,
}

impl Synthetic {
    fn number(&mut self, name: &Name, most: u16, now: Instant) -> Option<u16> {
        if let Some(&number) = self.numbers.get(name) {
            if let Some((_, used)) = self.names.get_mut(usize::from(number) - 1) {
                *used = now;
            }
            return Some(number);
        }
        let number = match u16::try_from(self.names.len() + 1) {
            Ok(number) if number <= most => {
                self.names.push((name.clone(), now));
                number
            }
            _ => {
                let names = self.names.iter_mut().enumerate();
                let (index, longest) = names.min_by_key(|(_, (_, used))| *used)?;
                if now.saturating_duration_since(longest.1) < KEPT {
                    return None;
                }
                self.numbers.remove(&longest.0);
                *longest = (name.clone(), now);
                u16::try_from(index + 1).ok()?
            }
        };
        self.numbers.insert(name.clone(), number);
        Some(number)
    }

    fn name(&mut self, number: u16, now: Instant) -> Option<Name> {
        let index = usize::from(number).checked_sub(1)?;
        let (name, used) = self.names.get_mut(index)?;
        *used = now;
        Some(name.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x5000_0000 + number))
    }

    #[test]
    fn an_address_stands_for_the_names_that_it_was_told_for() {
        let names = Names::new();
        names.learn(&name("a.test"), &[address(1), address(2)], SECOND);
        names.learn(&name("b.test"), &[address(2)], SECOND);
        assert_eq!(names.of(address(1)), [name("a.test")]);
        assert_eq!(names.of(address(2)), [name("a.test"), name("b.test")]);
        assert_eq!(names.of(address(3)), []);
        assert_eq!(names.addresses(&name("a.test")), [address(1), address(2)]);
        assert_eq!(names.addresses(&name("c.test")), [] as [IpAddr; 0]);
        // However it is written.
        assert_eq!(names.of("::ffff:80.0.0.1".parse().unwrap()).len(), 1);
    }

    #[test]
    fn an_answer_counts_for_an_hour_or_as_long_as_it_said() {
        let names = Names::new();
        let start = Instant::now();
        names.learn_at(&name("short.test"), &[address(1)], SECOND, start);
        names.learn_at(&name("long.test"), &[address(1)], KEPT * 2, start);
        names.learn_at(&name("ever.test"), &[address(1)], Duration::MAX, start);
        let at = |since: Duration| names.of_at(address(1), start + since).len();
        assert_eq!(at(KEPT - SECOND), 3);
        assert_eq!(at(KEPT), 2);
        assert_eq!(at(KEPT * 2), 1);
        assert_eq!(at(KEPT_AT_MOST), 0);
        let short = name("short.test");
        assert_eq!(names.addresses_at(&short, start + KEPT), [] as [IpAddr; 0]);
        // Told again, it counts again.
        names.learn_at(&short, &[address(1)], SECOND, start + KEPT);
        assert_eq!(names.addresses_at(&short, start + KEPT), [address(1)]);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let names = Names::new();
        for number in 0..100 {
            names.learn(&name(&format!("n{number}.test")), &[address(1)], SECOND);
            // This one is used all the time.
            names.learn(&name("used.test"), &[address(1)], SECOND);
        }
        let known = names.of(address(1));
        assert_eq!(known.len(), MAX_NAMES);
        assert!(known.contains(&name("used.test")));
        assert!(known.contains(&name("n99.test")));
        assert!(!known.contains(&name("n10.test")));
        assert!(names.addresses(&name("n10.test")).is_empty());

        let many = u32::try_from(MAX_ADDRESSES).unwrap() + 10;
        for number in 0..many {
            names.learn(&name("many.test"), &[address(number)], SECOND);
        }
        assert_eq!(names.addresses(&name("many.test")).len(), MAX_ADDRESSES);
        assert!(names.of(address(1)).is_empty());
        assert_eq!(names.of(address(many - 1)), [name("many.test")]);

        // Never more than there is room for, whatever they are.
        for number in 0..many * 16 {
            let name = name(&format!("n{number}.test"));
            names.learn(&name, &[address(number / 16)], SECOND);
        }
        let learned = names.learned.lock().unwrap();
        assert!(learned.ages.len() <= MAX_PAIRS && learned.names.len() <= MAX_ADDRESSES);
        let pairs: usize = learned.names.values().map(Vec::len).sum();
        let back: usize = learned.addresses.values().map(Vec::len).sum();
        assert_eq!((pairs, back), (learned.ages.len(), learned.ages.len()));
    }

    #[test]
    fn a_name_has_addresses_of_its_own() {
        let names = Names::new();
        let (a4, a6) = names.synthetic(&name("a.test")).unwrap();
        let (b4, b6) = names.synthetic(&name("b.test")).unwrap();
        assert!(a4 != b4 && a6 != b6);
        assert_eq!(names.synthetic(&name("a.test")), Some((a4, a6)));
        for (address, name) in [(a4.into(), "a.test"), (b6.into(), "b.test")] {
            assert!(is_synthetic(address));
            assert_eq!(names.of_synthetic(address).unwrap().as_str(), name);
        }
        assert_eq!(b4, Ipv4Addr::new(198, 19, 0, 2));
        assert_eq!(b6, "fdf1:a5f1:a5f2::2".parse::<Ipv6Addr>().unwrap());
        for unknown in [
            "198.19.0.0",
            "198.19.0.3",
            "198.18.0.1",
            "fdf1:a5f1:a5f2::",
            "fdf1:a5f1:a5f2::1:0:1",
            "fdf1:a5f1:a5f1::1",
        ] {
            assert_eq!(names.of_synthetic(unknown.parse().unwrap()), None);
        }
    }

    #[test]
    fn an_address_is_used_again_only_when_nobody_used_it_for_an_hour() {
        let mut synthetic = Synthetic::default();
        let start = Instant::now();
        let mut number = |text: &str, at: Duration| synthetic.number(&name(text), 2, start + at);
        assert_eq!(number("a.test", Duration::ZERO), Some(1));
        assert_eq!(number("b.test", SECOND), Some(2));
        assert_eq!(number("c.test", KEPT - SECOND), None);
        assert_eq!(number("a.test", KEPT - SECOND), Some(1));
        assert_eq!(number("c.test", KEPT), None);
        assert_eq!(number("c.test", KEPT + SECOND), Some(2));
        assert_eq!(number("b.test", KEPT + SECOND), None);
        let now = start + KEPT + SECOND;
        assert_eq!(synthetic.name(2, now), Some(name("c.test")));
        assert_eq!(synthetic.name(1, now), Some(name("a.test")));
        assert_eq!(synthetic.name(3, now), None);
        assert_eq!(synthetic.name(0, now), None);
        assert_eq!(synthetic.names.len(), synthetic.numbers.len());
    }
}
