//! Sets of capabilities in documents that people read: lists of names. In messages they are
//! numbers.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::privilege::{CAPABILITY_NAMES, Capabilities};

/// Those of later kernels, which have no name here.
const UNNAMED: u64 = u64::MAX << CAPABILITY_NAMES.len();

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return self.0.serialize(serializer);
        }
        if self.0 & UNNAMED == UNNAMED {
            let missing = Self(!self.0).names().map(|name| format!("-{name}"));
            return serializer.collect_seq(["ALL".to_owned()].into_iter().chain(missing));
        }
        let unnamed = (0..u64::BITS).filter(|bit| self.0 & UNNAMED & (1 << bit) != 0);
        let unnamed = unnamed.map(|bit| bit.to_string());
        let names = self.names().map(str::to_owned);
        serializer.collect_seq(names.chain(unnamed))
    }
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => deserializer.deserialize_any(Names),
            false => u64::deserialize(deserializer).map(Self),
        }
    }
}

/// Names, or the number that documents had before.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Capabilities;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names of capabilities")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Capabilities, E> {
        Ok(Capabilities(number))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Capabilities, A::Error> {
        let mut all = Capabilities::NONE;
        while let Some(word) = names.next_element::<String>()? {
            let (name, is_missing) = match word.strip_prefix('-') {
                Some(name) => (name, true),
                None => (word.as_str(), false),
            };
            let number = || name.parse::<u32>().ok().filter(|bit| *bit < u64::BITS);
            let named = Capabilities::named(name).or_else(|| Some(Capabilities(1 << number()?)));
            let named =
                named.ok_or_else(|| A::Error::custom(format!("no capability: {name:?}")))?;
            all = match is_missing {
                true => all.without(named),
                false => Capabilities(all.0 | named.0),
            };
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privilege::Confinement;

    #[test]
    fn documents_have_names_and_messages_numbers() {
        let two = Capabilities(Capabilities::NET_RAW.0 | Capabilities::CHOWN.0);
        let later = Capabilities(Capabilities::CHOWN.0 | 1 << 50);
        for (set, text) in [
            (Capabilities::NONE, "[]"),
            (two, r#"["CHOWN","NET_RAW"]"#),
            (Capabilities::ALL, r#"["ALL"]"#),
            (
                Confinement::PRIVILEGED.capabilities,
                r#"["ALL","-SYS_BOOT"]"#,
            ),
            (later, r#"["CHOWN","50"]"#),
        ] {
            assert_eq!(serde_json::to_string(&set).unwrap(), text);
            assert_eq!(serde_json::from_str::<Capabilities>(text).unwrap(), set);
            // As documents were.
            let number = set.0.to_string();
            assert_eq!(serde_json::from_str::<Capabilities>(&number).unwrap(), set);
            let message = postcard::to_stdvec(&set).unwrap();
            assert_eq!(message, postcard::to_stdvec(&set.0).unwrap());
            assert_eq!(postcard::from_bytes::<Capabilities>(&message).unwrap(), set);
        }
        for text in [r#"["CHOW"]"#, r#"["64"]"#, r#"["--1"]"#, "-1", r#""ALL""#] {
            let parsed = serde_json::from_str::<Capabilities>(text);
            assert!(parsed.is_err(), "{text}");
        }
    }
}
