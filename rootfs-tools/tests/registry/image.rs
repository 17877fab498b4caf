//! A small image, and a registry that serves it as it should.

use flashpan_rootfs::oci::image::{Descriptor, Digest, MediaType};
use flashpan_rootfs::registry::sha256;

use crate::server::{Reply, Request};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

/// Bytes that do not compress, always the same.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    let size = content.len() as u64;
    Descriptor::new(MediaType::from(media_type), size, sha256(content))
}

/// The JSON of a descriptor.
pub(crate) fn json(media_type: &str, content: &[u8]) -> String {
    let (digest, size) = (sha256(content), content.len());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

/// An index of documents for platforms.
pub(crate) fn index(entries: &[(&str, &[u8], &str, &str)]) -> Vec<u8> {
    let entries = entries
        .iter()
        .map(|(media_type, content, os, architecture)| {
            let platform = format!(r#""platform":{{"os":"{os}","architecture":"{architecture}"}}"#);
            let json = json(media_type, content);
            format!("{},{platform}}}", json.strip_suffix('}').unwrap())
        });
    let entries: Vec<_> = entries.collect();
    let entries = entries.join(",");
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entries}]}}"#).into_bytes()
}

impl Image {
    pub(crate) fn new(layers: Vec<Vec<u8>>) -> Self {
        Self::of("amd64", layers)
    }

    pub(crate) fn of(architecture: &str, layers: Vec<Vec<u8>>) -> Self {
        Self::with_diff_ids(architecture, layers, &[])
    }

    /// Of layers that are not compressed.
    pub(crate) fn convertible(layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|it| sha256(it).to_string()).collect();
        Self::with_diff_ids("amd64", layers, &diff_ids)
    }

    fn with_diff_ids(architecture: &str, layers: Vec<Vec<u8>>, diff_ids: &[String]) -> Self {
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Cmd":["/bin/true"]}},"rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
        );
        Self::with(config.into_bytes(), layers)
    }

    /// The same layers, and this configuration.
    pub(crate) fn with_config(self, config: &str) -> Self {
        Self::with(config.as_bytes().to_vec(), self.layers)
    }

    fn with(config: Vec<u8>, layers: Vec<Vec<u8>>) -> Self {
        let list: Vec<_> = layers.iter().map(|it| json(LAYER, it)).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            json(CONFIG, &config),
            list.join(",")
        );
        Self {
            manifest: manifest.into_bytes(),
            config,
            layers,
        }
    }

    pub(crate) fn layer(&self, number: usize) -> Descriptor {
        descriptor(LAYER, &self.layers[number])
    }

    pub(crate) fn digest(&self) -> Digest {
        sha256(&self.manifest)
    }

    pub(crate) fn config_digest(&self) -> Digest {
        sha256(&self.config)
    }

    /// Serves whatever is asked for, tags included, and parts of blobs.
    pub(crate) fn serve(&self, request: &Request, reply: &mut Reply) {
        if request.path.contains("/manifests/") {
            let digest = self.digest().to_string();
            let headers = [
                ("content-type", MANIFEST),
                ("docker-content-digest", &digest),
            ];
            return reply.send(200, &headers, &self.manifest);
        }
        let blobs = self.layers.iter().chain([&self.config]);
        let wanted = |blob: &&Vec<u8>| request.path.ends_with(sha256(blob).as_ref());
        match blobs.into_iter().find(wanted) {
            Some(blob) => serve_blob(blob, request, reply),
            None => reply.send(404, &[], br#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
        }
    }
}

/// Serves a blob, or the part of it that is asked for.
pub(crate) fn serve_blob(blob: &[u8], request: &Request, reply: &mut Reply) {
    match request.from() {
        None => reply.send(200, &[], blob),
        Some(from) if from < blob.len() => {
            let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
            reply.send(206, &[("content-range", &range)], &blob[from..]);
        }
        Some(_) => reply.send(416, &[], b""),
    }
}
