use super::*;

const DIGEST: &str = "sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str, size: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":{size}}}"#)
}

fn image(config: &str, layers: &[&str]) -> String {
    let layers: Vec<_> = layers.iter().map(|it| descriptor(it, "1")).collect();
    format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(config, "1"),
        layers.join(",")
    )
}

fn kind(text: &str, content_type: Option<&str>) -> Result<&'static str, String> {
    match parse(
        text.as_bytes(),
        content_type,
        "the manifest of x",
        "reg.example",
    ) {
        Ok(Document::Image(_)) => Ok("image"),
        Ok(Document::Index(_)) => Ok("index"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn documents_are_what_their_types_say_or_what_they_look_like() {
    let image = image(CONFIG, &[LAYER]);
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    for (text, content_type, is) in [
        (image.as_str(), Some(OCI_MANIFEST), "image"),
        (
            &image,
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            "image",
        ),
        (&image, Some(DOCKER_MANIFEST), "image"),
        (&image, Some("application/json"), "image"),
        (&image, Some("application/octet-stream"), "image"),
        (&image, None, "image"),
        (index, Some(OCI_INDEX), "index"),
        (index, Some(DOCKER_LIST), "index"),
        (index, None, "index"),
    ] {
        assert_eq!(kind(text, content_type), Ok(is), "{content_type:?}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let image = image(CONFIG, &[LAYER]);
    let artifact = r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}"#;
    let both = image.replacen('{', r#"{"manifests":[],"#, 1);
    let liar = image.replacen('{', &format!(r#"{{"mediaType":"{OCI_INDEX}","#), 1);
    let schema_1 = r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#;
    let negative = image.replace(r#""size":1"#, r#""size":-1"#);
    let traversal = image.replace("sha256:", "../:");
    for (text, content_type, reason) in [
        (schema_1, None, "old format"),
        (
            schema_1,
            Some(DOCKER_SCHEMA_1_SIGNED),
            "manifest.v1+prettyjws",
        ),
        (schema_1, Some(OCI_MANIFEST), "several kinds"),
        (artifact, None, "vnd.oci.artifact.manifest.v1+json"),
        (
            "<html>",
            Some("text/html"),
            "no manifest (media type `text/html`)",
        ),
        ("", None, "makes no sense"),
        ("[]", None, "makes no sense"),
        (both.as_str(), Some(OCI_INDEX), "several kinds"),
        (&both, Some(OCI_MANIFEST), "several kinds"),
        (&liar, Some(OCI_MANIFEST), "calls itself"),
        (&negative, None, "makes no sense"),
        (&traversal, None, "makes no sense"),
        (
            "{}",
            Some("application/vnd.evil\u{1b}[31m"),
            "vnd.evil [31m",
        ),
    ] {
        let why = kind(text, content_type).unwrap_err();
        assert!(why.contains(reason), "{text}: {why}");
        assert!(!why.chars().any(char::is_control), "{why}");
    }
}

fn checked(text: &str, limits: &Limits) -> Result<(), String> {
    let manifest: ImageManifest = serde_json::from_str(text).unwrap();
    check(&manifest, "x:latest", "reg.example", limits).map_err(|error| error.to_string())
}

#[test]
fn images_of_docker_and_oci_are_images() {
    let limits = Limits::default();
    for config in [CONFIG, DOCKER_CONFIG] {
        for layer in [
            LAYER,
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert_eq!(
                checked(&image(config, &[layer]), &limits),
                Ok(()),
                "{layer}"
            );
        }
    }
    assert_eq!(checked(&image(CONFIG, &[]), &limits), Ok(()));
}

#[test]
fn artifacts_and_excesses_are_refused() {
    let limits = Limits {
        layers: 2,
        ..Limits::default()
    };
    let fine = image(CONFIG, &[LAYER]);
    let huge = fine.replace(r#""size":1}]"#, &format!(r#""size":{}}}]"#, 8u64 << 60));
    let unknown = fine.replace(
        DIGEST,
        "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX",
    );
    for (text, reason) in [
        (
            image("application/vnd.cncf.helm.config.v1+json", &[]),
            "vnd.cncf.helm.config.v1+json",
        ),
        (image("application/vnd.oci.empty.v1+json", &[]), "artifact"),
        (image(CONFIG, &["application/wasm"]), "application/wasm"),
        (image(CONFIG, &[&format!("{LAYER}+encrypted")]), "encrypted"),
        (image(CONFIG, &[LAYER, LAYER, LAYER]), "3 layers"),
        (huge, "9223372036854775808 bytes"),
        (unknown, "cannot be checked"),
    ] {
        let why = checked(&text, &limits).unwrap_err();
        assert!(why.contains(reason), "{why}");
    }
}
