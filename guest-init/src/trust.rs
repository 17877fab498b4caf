//! The authority whose certificates the host shows where it looks into TLS.
//!
//! Programs find whom to trust in a bundle of the system, whose path is a matter of the
//! distribution, in a store of Java's, or where a variable says. Bundles and stores get the
//! authority added to what is in them, so that what the host passes on as it is can be
//! verified as well; variables lead to the bundle those that have one of their own.

mod java;
mod jks;
mod pkcs12;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use flashpan_protocol::agent::Bytes;
use nix::mount::{MsFlags, mount};

use crate::device_tree::DeviceTree;

/// Where distributions have their bundle, the most usual first.
const BUNDLES: [&str; 6] = [
    // Debian, Alpine, Arch.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora and its relatives.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // openSUSE.
    "/etc/ssl/ca-bundle.pem",
    // Alpine, BSD-like.
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// Where the programs that make the bundle anew look for more authorities.
const SOURCES: [&str; 2] = [
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
];

/// The name of the authority in these.
const FILE: &str = "flashpan.crt";

/// A directory in memory for what cannot be written elsewhere.
const OWN: &str = "/dev/flashpan";

/// The longest bundle or store that is looked at.
const MAX_LEN: u64 = 8 << 20;

/// Lines before and after the authority in a bundle: one of an earlier run is taken out.
const BEGIN: &str = "# flashpan: begin\n";
const END: &str = "# flashpan: end\n";

/// Variables for programs that look for a whole bundle.
static OF_BUNDLE: [&str; 10] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
];

/// Variables for programs that add to a bundle of their own.
static OF_MORE: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// What programs need to know.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Trust {
    /// Variables of every program, in place of what it was given.
    pub(crate) variables: Vec<(Bytes, Bytes)>,
    /// What went wrong.
    pub(crate) warnings: Vec<String>,
}

/// Makes programs trust an authority, whose certificate this is. The root is entered, and
/// can be written to if `writable`; `devices` is the `/dev` of confined programs.
pub(crate) fn install(certificate: &str, writable: bool, devices: Option<&DeviceTree>) -> Trust {
    let mut trust = Trust::default();
    let own = Path::new(OWN);
    let of_confined = devices
        .map(DeviceTree::path)
        .map(|tree| tree.join("flashpan"));
    for directory in [Some(own.to_owned()), of_confined].into_iter().flatten() {
        if let Err(error) = own_files(&directory, certificate) {
            trust
                .warnings
                .push(format!("keep the authority in {OWN}: {error}"));
            return trust;
        }
    }
    let bundle = bundles(own, certificate, writable, &mut trust.warnings);
    stores(own, certificate, writable, &mut trust.warnings);
    let bundle = bundle.unwrap_or_else(|| own.join("bundle.pem"));
    let more = own.join("ca.pem");
    let set = |names: &'static [&'static str], path: &Path| {
        let value = path.as_os_str().as_encoded_bytes().to_vec();
        let name = |name: &&str| Bytes::from(name.as_bytes().to_vec());
        let pairs = names.iter().map(name);
        pairs
            .map(|name| (name, value.clone().into()))
            .collect::<Vec<_>>()
    };
    trust.variables = set(&OF_BUNDLE, &bundle);
    trust.variables.extend(set(&OF_MORE, &more));
    trust
}

/// The certificate, alone and as a bundle, where nothing of the root has to be written to.
fn own_files(own: &Path, certificate: &str) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(own)?;
    write(&own.join("ca.pem"), certificate.as_bytes())?;
    write(&own.join("bundle.pem"), certificate.as_bytes())
}

/// Adds the authority to every bundle there is; the first of them.
fn bundles(
    own: &Path,
    certificate: &str,
    writable: bool,
    warnings: &mut Vec<String>,
) -> Option<PathBuf> {
    let mut done: Vec<PathBuf> = Vec::new();
    let mut first = None;
    for bundle in BUNDLES.map(Path::new) {
        // One may be a link to another.
        let Ok(real) = fs::canonicalize(bundle) else {
            continue;
        };
        if done.contains(&real) {
            continue;
        }
        let number = done.len();
        let cover = own.join(format!("bundle{number}.pem"));
        let added = read(&real).and_then(|before| {
            // Comments may be in any encoding, and do not matter.
            let with = with_authority(&String::from_utf8_lossy(&before), certificate);
            put(&real, with.as_bytes(), (!writable).then_some(&cover))
        });
        match added {
            Ok(()) => drop(first.get_or_insert_with(|| bundle.to_owned())),
            Err(error) => warnings.push(not_added(bundle, &error)),
        }
        done.push(real);
    }
    if writable {
        for source in SOURCES
            .map(Path::new)
            .iter()
            .filter(|source| source.is_dir())
        {
            let path = source.join(FILE);
            if let Err(error) = write(&path, certificate.as_bytes()) {
                warnings.push(format!("write {}: {error}", path.display()));
            }
        }
    }
    first
}

/// Adds the authority to every store of Java's. Those that are not understood stay as they
/// are.
fn stores(own: &Path, certificate: &str, writable: bool, warnings: &mut Vec<String>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let now = now.and_then(|now| u64::try_from(now.as_millis()).ok());
    for (number, store) in java::stores().into_iter().enumerate() {
        let cover = own.join(format!("cacerts{number}"));
        let added = read(&store).and_then(|before| {
            let with = java::with_authority(&before, certificate, now.unwrap_or_default());
            let with = with.map_err(io::Error::other)?;
            put(&store, &with, (!writable).then_some(&cover))
        });
        if let Err(error) = added {
            warnings.push(not_added(&store, &error));
        }
    }
}

fn not_added(path: &Path, error: &io::Error) -> String {
    format!("add the host's authority to {}: {error}", path.display())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // What is there is the image's choice, and may have nothing to say.
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_LEN) {
        return Err(io::Error::other("it is longer than 8 MiB"));
    }
    Ok(bytes)
}

/// Makes `content` what is found at `path`: by writing there, or, where that cannot be, by
/// a mount of the file `cover`.
fn put(path: &Path, content: &[u8], cover: Option<&PathBuf>) -> io::Result<()> {
    let Some(file) = cover else {
        return write(path, content);
    };
    write(file, content)?;
    let none = None::<&str>;
    mount(Some(file), path, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

/// Writes over what is there, in place: others may hold it open, and its owner and mode
/// stay.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    io::Write::write_all(&mut options.open(path)?, content)
}

/// A bundle with this authority in place of that of an earlier run.
fn with_authority(bundle: &str, certificate: &str) -> String {
    let mut with = String::with_capacity(bundle.len() + certificate.len() + 64);
    match (bundle.find(BEGIN), bundle.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            with.push_str(bundle.get(..begin).unwrap_or_default());
            with.push_str(bundle.get(end + END.len()..).unwrap_or_default());
        }
        _ => with.push_str(bundle),
    }
    if !with.is_empty() && !with.ends_with('\n') {
        with.push('\n');
    }
    with.push_str(BEGIN);
    with.push_str(certificate);
    if !certificate.ends_with('\n') {
        with.push('\n');
    }
    with.push_str(END);
    with
}
