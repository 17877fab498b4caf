//! From the paths of requests to one host to the rules that mean them, and little else.

use std::collections::{BTreeMap, BTreeSet};

use flashpan_network::policy::Rule;
use flashpan_network::policy::path::PathPattern;

/// Most names in one directory that are written out. Of more all that is below it is meant.
const MAX_SIBLINGS: usize = 5;

/// Most segments that are kept of one method. Of more all paths are meant.
const MAX_NODES: usize = 4096;

/// Most methods of one host, as of one rule.
const MAX_METHODS: usize = 32;

/// The paths of one host, by method.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    methods: BTreeMap<String, Tree>,
    /// The host with each port that there was a request to.
    places: BTreeSet<String>,
    /// There was a request that no rule can mean.
    is_whole: bool,
}

/// The paths that begin with the same segments.
#[derive(Debug, Clone, Default)]
struct Tree {
    below: BTreeMap<String, Tree>,
    /// It is a path itself.
    ends: bool,
    /// How many segments are below the root; kept there only.
    nodes: usize,
}

impl Paths {
    /// Adds a request; the path is none if it could be read in two ways. Whether there can be a
    /// rule for it: a `*` in its path, which is the guest's, would be one in the rule.
    pub(super) fn add(&mut self, place: &str, method: &str, path: Option<&str>) -> bool {
        if !self.places.contains(place) {
            self.places.insert(place.to_owned());
        }
        if path.is_some_and(|path| path.contains('*')) {
            return false;
        }
        let is_known = self.methods.contains_key(method);
        let is_method = method.bytes().all(|byte| byte.is_ascii_uppercase());
        let Some(path) = path.filter(|_| is_method && !method.is_empty()) else {
            self.is_whole = true;
            return true;
        };
        if !is_known && self.methods.len() >= MAX_METHODS {
            self.is_whole = true;
            return true;
        }
        self.methods.entry(method.to_owned()).or_default().add(path);
        true
    }

    /// The host with its ports.
    pub(super) fn places(&self) -> impl Iterator<Item = &String> {
        self.places.iter()
    }

    /// The rules for all of them; none if there are no such rules, and the whole host has to
    /// be allowed.
    pub(super) fn rules(&self, host: &str) -> Option<Vec<String>> {
        if self.is_whole {
            return None;
        }
        let mut methods: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (method, tree) in &self.methods {
            for pattern in tree.patterns() {
                methods.entry(pattern).or_default().push(method);
            }
        }
        let rule = |(pattern, methods): (String, Vec<&str>)| {
            let rule = format!("allow {} {host}{pattern}", methods.join(","));
            rule.parse::<Rule>().is_ok().then_some(rule)
        };
        methods.into_iter().map(rule).collect()
    }
}

impl Tree {
    fn add(&mut self, path: &str) {
        let mut new = 0;
        let full = self.nodes >= MAX_NODES;
        let mut at = &mut *self;
        for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
            let segment = general(segment);
            // What there is no room for is meant by `/**`, since there are so many.
            if full && !at.below.contains_key(&segment) {
                return;
            }
            at = at.below.entry(segment).or_insert_with(|| {
                new += 1;
                Self::default()
            });
        }
        at.ends = true;
        self.nodes = self.nodes.saturating_add(new);
    }

    /// The patterns that mean all these paths, each once.
    fn patterns(&self) -> BTreeSet<String> {
        if self.nodes >= MAX_NODES {
            return BTreeSet::from(["/**".to_owned()]);
        }
        let mut patterns = BTreeSet::new();
        self.collect("", &mut patterns);
        let is_all = |pattern: &str| pattern.ends_with("/**");
        let known: Vec<(String, PathPattern)> = (patterns.iter())
            .filter_map(|text| Some((text.clone(), text.parse().ok()?)))
            .collect();
        // One that another means as well, read as a path, is not needed.
        patterns.retain(|text| {
            let others = known.iter().filter(|(other, _)| other != text);
            let covers = |(_, other): &(String, PathPattern)| other.matches(text);
            is_all(text) || !others.into_iter().any(covers)
        });
        patterns
    }

    fn collect(&self, path: &str, patterns: &mut BTreeSet<String>) {
        if self.ends {
            patterns.insert(path.to_owned());
        }
        if self.below.len() > MAX_SIBLINGS {
            patterns.insert(format!("{path}/**"));
            return;
        }
        for (segment, tree) in &self.below {
            tree.collect(&format!("{path}/{segment}"), patterns);
        }
    }
}

/// A segment with `*` in place of what is another one in the next run.
fn general(segment: &str) -> String {
    let mut general = String::with_capacity(segment.len());
    let mut rest = segment;
    while !rest.is_empty() {
        let is_of_word = |c: char| c.is_ascii_alphanumeric();
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        match is_id(word) {
            true => general.push('*'),
            false => general.push_str(word),
        }
        let next = after.find(is_of_word).unwrap_or(after.len());
        let (between, after) = after.split_at(next);
        general.push_str(between);
        rest = after;
    }
    // Pieces of one thing, as of a UUID.
    while general.contains("*-*") || general.contains("*_*") {
        general = general.replace("*-*", "*").replace("*_*", "*");
    }
    general
}

/// Whether a word is a number or a hash, or random.
fn is_id(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    if digits == word.len() {
        // One digit is a version of something: /v1 has a letter, /api/2 has none.
        return word.len() > 1;
    }
    let is_hexadecimal = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_mixed = word.bytes().any(|byte| byte.is_ascii_uppercase())
        && word.bytes().any(|byte| byte.is_ascii_lowercase());
    match word.len() {
        0..4 => false,
        4..7 => is_hexadecimal && digits > 0,
        7..16 => is_hexadecimal && digits > 0,
        16..20 => digits > 0 && (is_hexadecimal || is_mixed),
        _ => digits > 1,
    }
}
