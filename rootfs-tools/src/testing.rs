//! Archives for tests, made by hand so that they can be wrong.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::directory::hex;

/// `sha256:` and the digest of the bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// A configuration with these `diff_ids`; `run` is the part that says how its
/// programs are run.
pub(crate) fn image_config(diff_ids: &[String], run: &str) -> String {
    format!(
        r#"{{"architecture": "amd64", "os": "linux", "config": {run},
            "rootfs": {{"type": "layers", "diff_ids": {diff_ids:?}}}}}"#
    )
}

/// The files of an OCI layout with images of uncompressed layers: name, layers,
/// and how programs are run.
pub(crate) fn oci_layout(images: &[(&str, &[Vec<u8>], &str)]) -> BTreeMap<String, Vec<u8>> {
    fn put(files: &mut BTreeMap<String, Vec<u8>>, bytes: &[u8], media_type: &str) -> String {
        let digest = digest_of(bytes);
        files.insert(format!("blobs/sha256/{}", &digest[7..]), bytes.to_vec());
        let size = bytes.len();
        format!(r#""mediaType": "{media_type}", "digest": "{digest}", "size": {size}"#)
    }
    let mut files = BTreeMap::new();
    let mut entries = Vec::new();
    for (name, layers, run) in images {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
        let config = image_config(&diff_ids, run);
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = put(&mut files, config.as_bytes(), kind);
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layers = layers
            .iter()
            .map(|layer| format!("{{{}}}", put(&mut files, layer, kind)));
        let layers = layers.collect::<Vec<_>>().join(",");
        let manifest = format!(
            r#"{{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {{{config}}}, "layers": [{layers}]}}"#
        );
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = put(&mut files, manifest.as_bytes(), kind);
        entries.push(format!(
            r#"{{{manifest}, "annotations": {{"org.opencontainers.image.ref.name": "{name}"}}}}"#
        ));
    }
    let index = format!(
        r#"{{"schemaVersion": 2, "manifests": [{}]}}"#,
        entries.join(",")
    );
    files.insert("index.json".to_owned(), index.into_bytes());
    let mark = br#"{"imageLayoutVersion": "1.0.0"}"#;
    files.insert("oci-layout".to_owned(), mark.to_vec());
    files
}

/// Writes a tar.
#[derive(Debug, Default)]
pub(crate) struct TarBuilder(Vec<u8>);

impl TarBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(self, name: &str, contents: &[u8]) -> Self {
        self.member(b'0', name, "", contents)
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.member(b'5', name, "", b"")
    }

    pub(crate) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.member(kind, name, target, b"")
    }

    /// Gives the next member this name, as GNU tar does it.
    pub(crate) fn gnu_long(self, name: &str) -> Self {
        self.member(b'L', "././@LongLink", "", format!("{name}\0").as_bytes())
    }

    /// Says this of the next member, as POSIX has it.
    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut block = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            // The length counts its own digits.
            let mut length = rest.len() + 1;
            while length != rest.len() + length.to_string().len() {
                length += 1;
            }
            block.push_str(&format!("{length}{rest}"));
        }
        self.member(b'x', "pax", "", block.as_bytes())
    }

    fn member(mut self, kind: u8, name: &str, link: &str, contents: &[u8]) -> Self {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000755\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        Self::seal(&mut header);
        self.0.extend(header);
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Writes the check sum of a header.
    pub(crate) fn seal(header: &mut [u8]) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}
