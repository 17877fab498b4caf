//! Who a program runs as: users and groups of the guest's `/etc/passwd` and
//! `/etc/group`, by the rules of `docker run --user`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use thiserror::Error;

use crate::anchors::Anchors;

/// Longest account file that is read.
const FILE_MAX: u64 = 1 << 20;

/// Most supplementary groups that a user is given from the file. Linux allows
/// 65,536.
const GROUPS_MAX: usize = 1024;

/// Largest user and group id, as docker has it.
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// Ids and home directory to start a program with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one among them; sorted.
    pub(crate) groups: Vec<u32>,
    /// Home directory; `/` if the image does not know the user.
    pub(crate) home: Vec<u8>,
}

/// Why there is no such identity.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum UserError {
    #[error("no user {0:?} in the image's /etc/passwd; give a name that is there, or a number")]
    NoUser(String),
    #[error("no group {0:?} in the image's /etc/group; give a name that is there, or a number")]
    NoGroup(String),
    #[error("user or group id {0} is larger than {ID_MAX}")]
    IdTooLarge(String),
    #[error("user {0:?} is not of the form name, uid, name:group or uid:gid")]
    Malformed(String),
}

/// The contents of the two account files; empty where there is none.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: Vec<u8>,
    pub(crate) group: Vec<u8>,
}

impl Accounts {
    /// Reads the files of the root file system. One that is missing, not a
    /// regular file, unreadable or something that a program has mounted there
    /// counts as empty; of a longer one only the first mebibyte counts.
    pub(crate) fn load(anchors: &Anchors) -> Self {
        Self {
            passwd: load(anchors, "etc/passwd"),
            group: load(anchors, "etc/group"),
        }
    }

    /// Looks `spec` up: `name`, `uid`, `name:group`, `uid:gid`; `None` is root.
    ///
    /// As docker does: digits are a number, whatever names the image has (else
    /// an image with a user called `1000` that is root would undo `--user
    /// 1000`: CVE-2016-3697); a number need not be known; an unknown user has
    /// group 0; supplementary groups are those that list the user, unless a
    /// group is given, and always the primary one (else a set-group-id program
    /// could shed it and pass a file that is closed to that group:
    /// CVE-2022-36109).
    pub(crate) fn resolve(&self, spec: Option<&str>) -> Result<Identity, UserError> {
        let spec = spec.unwrap_or("0");
        let (user, group) = match spec.split_once(':') {
            None => (spec, None),
            Some((user, group)) if !group.is_empty() && !group.contains(':') => (user, Some(group)),
            Some(_) => return Err(UserError::Malformed(spec.to_owned())),
        };
        if user.is_empty() {
            return Err(UserError::Malformed(spec.to_owned()));
        }
        let number = parse_id(user)?;
        let entry = self.users().find(|entry| match number {
            Some(number) => entry.uid == number,
            None => entry.name == user.as_bytes(),
        });
        let uid = number
            .or(entry.as_ref().map(|entry| entry.uid))
            .ok_or_else(|| UserError::NoUser(user.to_owned()))?;
        let (gid, mut groups) = match (group, &entry) {
            (Some(group), _) => (self.group_id(group)?, Vec::new()),
            (None, Some(entry)) => (entry.gid, self.groups_of(entry.name)),
            (None, None) => (0, Vec::new()),
        };
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        let home = entry
            .map(|entry| entry.home)
            .filter(|home| !home.is_empty());
        Ok(Identity {
            uid,
            gid,
            groups,
            home: home.unwrap_or(b"/").to_vec(),
        })
    }

    fn group_id(&self, group: &str) -> Result<u32, UserError> {
        if let Some(number) = parse_id(group)? {
            return Ok(number);
        }
        let by_name = self.groups().find(|entry| entry.name == group.as_bytes());
        by_name
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::NoGroup(group.to_owned()))
    }

    fn groups_of(&self, user: &[u8]) -> Vec<u32> {
        self.groups()
            .filter(|entry| entry.members.split(|b| *b == b',').any(|name| name == user))
            .map(|entry| entry.gid)
            .take(GROUPS_MAX)
            .collect()
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.split(|b| *b == b'\n').filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let mut fields = fields.skip(1);
            Some(User {
                name,
                uid: field_id(fields.next())?,
                gid: field_id(fields.next())?,
                home: fields.nth(1).unwrap_or_default(),
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.split(|b| *b == b'\n').filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let mut fields = fields.skip(1);
            Some(Group {
                name,
                gid: field_id(fields.next())?,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn field_id(field: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(field?).ok()?.parse().ok()
}

/// The number that `text` is, or `None` if it is not one.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= ID_MAX => Ok(Some(id)),
        _ => Err(UserError::IdTooLarge(text.to_owned())),
    }
}

fn load(anchors: &Anchors, path: &str) -> Vec<u8> {
    let file = anchors.root_file(Path::new(path)).map(File::from);
    let mut bytes = Vec::new();
    // A device could be read without end.
    if let Ok(file) = file
        && file.metadata().is_ok_and(|meta| meta.is_file())
    {
        let _ = file.take(FILE_MAX).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests;
