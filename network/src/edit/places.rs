//! In which places of a request the value of a secret comes.

use http::header::HeaderName;
use thiserror::Error;

use crate::host::shown;

/// Most headers that a secret is for.
const MAX_HEADERS: usize = 32;

/// Why a text is no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// There is no such place.
    #[error(
        "{0:?} is no place of a request; give headers, header:NAME, basic, query, path or body"
    )]
    Unknown(String),
    /// There is none.
    #[error("there is no place; give headers, header:NAME, basic, query, path or body")]
    None,
    /// All headers, and some.
    #[error("headers means all of them: leave it out, or header:NAME")]
    Headers,
    /// There are too many.
    #[error("more than {MAX_HEADERS} headers are named; headers means all of them")]
    TooMany,
}

/// In which places of a request a placeholder becomes the value. Elsewhere it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// In the values of headers.
    pub headers: bool,
    /// In the credentials of `Basic`, which are decoded and encoded for that.
    pub basic: bool,
    /// In the query of the URL, where the value is percent-encoded.
    pub query: bool,
    /// In the path of the URL, likewise.
    pub path: bool,
    /// In the body: escaped in JSON, percent-encoded in a form, and as it is in all else.
    /// In a body that has a content coding nothing is replaced.
    pub body: bool,
}

impl Default for Places {
    /// Headers, `Basic` and the query.
    fn default() -> Self {
        Self {
            headers: true,
            basic: true,
            query: true,
            path: false,
            body: false,
        }
    }
}

impl Places {
    /// The places that these words mean, and no others, and the headers that are named:
    /// `headers` (all), `header:NAME`, `basic`, `query`, `path`, `body`.
    ///
    /// # Errors
    /// One is no place, or there is none.
    pub fn of<'a>(
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<(Self, Option<Vec<HeaderName>>), PlaceError> {
        let mut places = Self {
            headers: false,
            basic: false,
            query: false,
            path: false,
            body: false,
        };
        let nowhere = places;
        let mut named = Vec::new();
        for word in words {
            match word {
                "headers" => places.headers = true,
                "basic" => places.basic = true,
                "query" => places.query = true,
                "path" => places.path = true,
                "body" => places.body = true,
                _ => {
                    let name = word.strip_prefix("header:");
                    let name = name.and_then(|name| name.parse::<HeaderName>().ok());
                    named.push(name.ok_or_else(|| PlaceError::Unknown(shown(word)))?);
                }
            }
        }
        if named.len() > MAX_HEADERS {
            return Err(PlaceError::TooMany);
        }
        if !named.is_empty() {
            if places.headers {
                return Err(PlaceError::Headers);
            }
            places.headers = true;
            return Ok((places, Some(named)));
        }
        match places == nowhere {
            true => Err(PlaceError::None),
            false => Ok((places, None)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn words_are_places_and_no_others() {
        let (places, named) = Places::of(["headers", "basic", "query"]).unwrap();
        assert_eq!((places, named), (Places::default(), None));
        let (places, named) = Places::of(["header:X-Key", "body"]).unwrap();
        assert!(places.headers && places.body && !(places.basic || places.query || places.path));
        assert_eq!(named.unwrap(), ["x-key"]);
        for (words, error) in [
            (&["cookie"][..], PlaceError::Unknown("cookie".to_owned())),
            (&["header:"], PlaceError::Unknown("header:".to_owned())),
            (
                &["header:a b"],
                PlaceError::Unknown("header:a b".to_owned()),
            ),
            (&["Path"], PlaceError::Unknown("Path".to_owned())),
            (&[], PlaceError::None),
            (&["headers", "header:a"], PlaceError::Headers),
            (&["header:a"; 33], PlaceError::TooMany),
        ] {
            assert_eq!(Places::of(words.iter().copied()), Err(error));
        }
    }
}
