//! Patterns of hosts and paths: whether they are written correctly.

use flashpan_network::policy::{Pattern, PatternError};

/// What is wrong with a pattern of hosts.
pub(super) fn check_host_pattern(pattern: &str) -> Result<(), PatternError> {
    pattern.parse::<Pattern>().map(drop)
}

/// What is wrong with a pattern of paths: `*`, `?`, `[a-z]`, `[^a-z]` and a
/// backslash before a character that is meant as it is.
pub(super) fn check_path_pattern(pattern: &str) -> Result<(), &'static str> {
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if rest.next().is_none() => return Err("ends with a backslash"),
            '[' => {
                rest.next_if_eq(&'^');
                let mut ranges = 0;
                while ranges == 0 || rest.next_if_eq(&']').is_none() {
                    class_character(&mut rest)?;
                    if rest.next_if_eq(&'-').is_some() {
                        class_character(&mut rest)?;
                    }
                    ranges += 1;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Passes over one character of a class.
fn class_character(rest: &mut Characters<'_>) -> Result<(), &'static str> {
    match rest.next() {
        None => Err("has a `[` without its `]`"),
        Some('-' | ']') => Err("has a class `[…]` with a `-` or `]` that needs a backslash"),
        Some('\\') if rest.next().is_none() => Err("ends with a backslash"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_are_names_and_addresses() {
        for pattern in [
            "a",
            "*",
            "*.a.com",
            "api-*.a.com",
            "10.0.0.1",
            "::1",
            "2001:db8::1",
            "a.com:443",
            "udp:a.com:53",
            "10.0.0.0/8",
            "[::1]:80",
        ] {
            assert_eq!(check_host_pattern(pattern), Ok(()), "{pattern}");
        }
        for pattern in ["", " ", "a b", "https://a.com", "a.com/x", "a.com:", "a\0"] {
            assert!(check_host_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn classes_and_backslashes_are_complete() {
        for pattern in [
            "",
            "/*",
            "/?",
            "/[a-z]",
            "/[^a-z0-9]",
            r"/\[",
            r"/[\]a\-]",
            "]",
            "-",
            "[[]",
        ] {
            assert_eq!(check_path_pattern(pattern), Ok(()), "{pattern}");
        }
        for pattern in [
            "[", "[]", "[]a]", "[^]", "[a", "[a-", "[a-]", "[-a]", "\\", r"[\", "[--]",
        ] {
            assert!(check_path_pattern(pattern).is_err(), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_is_a_problem(pattern in "\\PC*|[]a^\\\\*?-]{0,10}|[\\[\\]^a-]{0,8}") {
            let _ = check_path_pattern(&pattern);
            let _ = check_host_pattern(&pattern);
        }
    }
}
