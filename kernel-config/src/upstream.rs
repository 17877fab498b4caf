//! The tarball of kernel.org that is fetched where no source is installed.

use std::ffi::OsStr;

/// Directory of kernel.org that has the tarballs.
const DIRECTORY: &str = "https://cdn.kernel.org/pub/linux/kernel/v6.x";

/// Names another directory that has them.
const MIRROR_VARIABLE: &str = "FLASHPAN_KERNEL_MIRROR";

/// A tarball of Linux, pinned: wherever it is fetched from, only these bytes are
/// accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    pub(crate) version: String,
    pub(crate) sha256: String,
    directory: String,
    protocol: Protocol,
}

/// How a mirror is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Https,
    /// A mirror of one's own. What it could tamper with, the digest shows.
    Http,
    File,
}

/// A mirror that cannot be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// Not `https://`, `http://` or `file://`.
    #[error(
        "{MIRROR_VARIABLE} is no URL of a directory: write https://HOST/PATH, http://HOST/PATH or file:///PATH"
    )]
    Scheme,
    /// A user name or password in it. The URL is not shown.
    #[error(
        "{MIRROR_VARIABLE} has a user name in it, which every user of this machine could see among the processes: put it into ~/.netrc"
    )]
    Credentials,
}

impl Default for Upstream {
    /// The release of [`crate::WRITTEN_FOR`] that this version pins.
    fn default() -> Self {
        Self {
            version: "6.12.64".to_owned(),
            sha256: "d1ad94a33681148efe884f4028970d69e332f2b003f0e8be53a1d25de38e49a2".to_owned(),
            directory: DIRECTORY.to_owned(),
            protocol: Protocol::Https,
        }
    }
}

impl Upstream {
    /// The pinned release, from the mirror that the environment names
    /// (`FLASHPAN_KERNEL_MIRROR`), or else from kernel.org.
    ///
    /// # Errors
    /// The variable holds no URL that can be fetched from.
    pub fn user() -> Result<Self, MirrorError> {
        match std::env::var_os(MIRROR_VARIABLE) {
            Some(mirror) if !mirror.is_empty() => Self::default().with_mirror(&mirror),
            _ => Ok(Self::default()),
        }
    }

    /// Another release: `version` as in the tarball's name, and the SHA-256 of the
    /// tarball in hexadecimal.
    #[must_use]
    pub fn with_pin(mut self, version: &str, sha256: &str) -> Self {
        version.clone_into(&mut self.version);
        self.sha256 = sha256.to_ascii_lowercase();
        self
    }

    /// The same from another directory: an `https://`, `http://` or `file://` URL
    /// below which the tarball lies.
    ///
    /// # Errors
    /// Another scheme, or a user name in the URL.
    pub fn with_mirror(mut self, directory: impl AsRef<OsStr>) -> Result<Self, MirrorError> {
        let directory = directory.as_ref().to_str().ok_or(MirrorError::Scheme)?;
        let by_scheme = [
            ("https://", Protocol::Https),
            ("http://", Protocol::Http),
            ("file://", Protocol::File),
        ];
        let (rest, protocol) = by_scheme
            .into_iter()
            .find_map(|(scheme, protocol)| Some((directory.strip_prefix(scheme)?, protocol)))
            .ok_or(MirrorError::Scheme)?;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
        if rest.is_empty() || !rest.bytes().all(is_plain) {
            return Err(MirrorError::Scheme);
        }
        let host = rest.split('/').next().unwrap_or_default();
        if host.contains('@') {
            return Err(MirrorError::Credentials);
        }
        directory
            .trim_end_matches('/')
            .clone_into(&mut self.directory);
        self.protocol = protocol;
        Ok(self)
    }

    /// `linux-6.12.64.tar.xz`.
    pub fn file_name(&self) -> String {
        format!("linux-{}.tar.xz", self.version)
    }

    /// Where it is fetched from.
    pub fn url(&self) -> String {
        format!("{}/{}", self.directory, self.file_name())
    }

    /// What curl may speak: to begin with, and where it is sent on to.
    pub(crate) const fn protocols(&self) -> [&'static str; 2] {
        match self.protocol {
            Protocol::Https => ["=https", "=https"],
            Protocol::Http => ["=http", "=http,https"],
            Protocol::File => ["=file", "=https"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_release_comes_from_kernel_org_by_https_only() {
        let upstream = Upstream::default();
        assert_eq!(
            upstream.url(),
            "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.12.64.tar.xz"
        );
        assert_eq!(upstream.protocols(), ["=https", "=https"]);
        assert!(upstream.version.starts_with(crate::WRITTEN_FOR));
        assert_eq!(upstream.sha256.len(), 64);
    }

    #[test]
    fn a_mirror_is_a_directory_of_a_known_scheme() {
        let at = |mirror: &str| Upstream::default().with_mirror(mirror);
        assert_eq!(
            at("https://mirror.example/linux/").unwrap().url(),
            "https://mirror.example/linux/linux-6.12.64.tar.xz"
        );
        assert!(at("http://127.0.0.1:8080").is_ok() && at("file:///srv").is_ok());
        for wrong in [
            "",
            "/srv",
            "ftp://mirror.example",
            "https://",
            "https://a b",
            "https://a/?x=",
            "file",
        ] {
            assert_eq!(at(wrong), Err(MirrorError::Scheme), "{wrong}");
        }
    }

    #[test]
    fn a_password_in_a_mirror_is_refused_and_not_repeated() {
        let error = Upstream::default()
            .with_mirror("https://me:secret@mirror.example")
            .unwrap_err();
        assert_eq!(error, MirrorError::Credentials);
        assert!(!error.to_string().contains("secret"));
    }
}
