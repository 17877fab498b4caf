//! The distribution's registry, and images in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flashpan_rootfs::registry::sha256;
use tempfile::TempDir;

use crate::image::{CONFIG, MANIFEST, json};

/// What is let in where a login is wanted; its hash is that of bcrypt.
pub(crate) const USER: &str = "me";
pub(crate) const PASSWORD: &str = "correct horse";
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

/// A registry on a port of its own. It ends with the test.
pub(crate) struct Registry {
    process: Child,
    directory: TempDir,
    port: u16,
    tls: bool,
    login: bool,
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (`cargo xtask setup` installs it): {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

impl Registry {
    /// In plain HTTP, for everybody.
    pub(crate) fn open() -> Self {
        Self::start(false, false)
    }

    /// Over TLS, with a certificate of an authority of its own; for everybody.
    pub(crate) fn secure() -> Self {
        Self::start(true, false)
    }

    /// The same for [`USER`].
    pub(crate) fn closed() -> Self {
        Self::start(true, true)
    }

    fn start(tls: bool, login: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n",
            at("data")
        );
        if login {
            fs::write(at("htpasswd"), HTPASSWD).unwrap();
            let path = at("htpasswd");
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"
            ));
        }
        config.push_str("http:\n  addr: 127.0.0.1:0\n");
        if tls {
            certificates(directory.path());
            let (certificate, key) = (at("server.pem"), at("server.key"));
            config.push_str(&format!(
                "  tls: {{certificate: {certificate}, key: {key}}}\n"
            ));
        }
        fs::write(at("config.yml"), config).unwrap();
        // The kernel kills it when the thread of the test ends, however it ends.
        let mut process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "docker-registry",
                "serve",
                &at("config.yml"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv: {error}"));
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut all = String::new();
        let port = loop {
            let begin = all.len();
            let read = log.read_line(&mut all).unwrap();
            assert!(
                read > 0,
                "docker-registry (`cargo xtask setup` installs it) does not run:\n{all}"
            );
            if let Some((_, rest)) = all[begin..].split_once("listening on 127.0.0.1:") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().unwrap();
            }
        };
        // It must not stop because nobody reads what it says.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self {
            process,
            directory,
            port,
            tls,
            login,
        }
    }

    /// `HOST:PORT`.
    pub(crate) fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Copies an image into the registry, with skopeo.
    pub(crate) fn push(&self, layout: &Layout, tag: &str, name: &str, options: &[&str]) {
        let from = format!("oci:{}:{tag}", layout.directory.path().display());
        let to = format!("docker://{}/{name}", self.name());
        let login = format!("{USER}:{PASSWORD}");
        let mut arguments = vec!["--insecure-policy", "copy", "--quiet"];
        arguments.extend(options);
        // A directory that has nothing but the authority in it.
        let trust = self.directory.path().join("trust");
        let certificates = trust.display().to_string();
        if self.tls {
            fs::create_dir_all(&trust).unwrap();
            fs::copy(self.authority(), trust.join("ca.crt")).unwrap();
            arguments.extend(["--dest-cert-dir", &certificates]);
        } else {
            arguments.push("--dest-tls-verify=false");
        }
        if self.login {
            arguments.extend(["--dest-creds", &login]);
        }
        arguments.extend([from.as_str(), to.as_str()]);
        run("skopeo", &arguments);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An authority (`ca.pem`) and a certificate by it for 127.0.0.1 and for
/// registry.test (`server.pem`).
fn certificates(directory: &Path) {
    let at = |name: &str| directory.join(name).display().to_string();
    let new = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    let (ca, ca_key, server, server_key) = (
        at("ca.pem"),
        at("ca.key"),
        at("server.pem"),
        at("server.key"),
    );
    let authority = [
        "-subj",
        "/CN=test authority",
        "-keyout",
        &ca_key,
        "-out",
        &ca,
    ];
    run("openssl", &[&new[..], &authority].concat());
    let host = [
        "-subj",
        "/CN=registry",
        "-keyout",
        &server_key,
        "-out",
        &server,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:registry.test",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    run("openssl", &[&new[..], &host].concat());
}

/// Images in an OCI layout, of archives that are real.
pub(crate) struct Layout {
    directory: TempDir,
    index: Vec<String>,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        let header = br#"{"imageLayoutVersion":"1.0.0"}"#;
        fs::write(directory.path().join("oci-layout"), header).unwrap();
        let index = Vec::new();
        Self { directory, index }
    }

    fn blob(&self, content: &[u8]) {
        let blobs = self.directory.path().join("blobs/sha256");
        fs::write(blobs.join(sha256(content).digest()), content).unwrap();
    }

    /// An archive with one file, compressed; and its digest before that.
    fn layer(&self, compress: &str, content: &[u8]) -> (Vec<u8>, String) {
        let work = tempfile::tempdir().unwrap();
        let at = |name: &str| work.path().join(name).display().to_string();
        fs::write(at("file"), content).unwrap();
        run("tar", &["-C", &at(""), "-cf", &at("layer.tar"), "file"]);
        let digest = sha256(&fs::read(at("layer.tar")).unwrap()).to_string();
        run(compress, &["-q", &at("layer.tar")]);
        let packed = ["gz", "zst"].map(|it| work.path().join(format!("layer.tar.{it}")));
        let packed = packed.iter().find_map(|path| fs::read(path).ok()).unwrap();
        (packed, digest)
    }

    /// An image with these layers: a compressor and the content of a file each.
    /// Gives its manifest.
    pub(crate) fn image(&self, architecture: &str, layers: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut list, mut ids) = (Vec::new(), Vec::new());
        for (compress, content) in layers {
            let (packed, id) = self.layer(compress, content);
            let media_type = format!("application/vnd.oci.image.layer.v1.tar+{compress}");
            list.push(json(&media_type, &packed));
            ids.push(format!("\"{id}\""));
            self.blob(&packed);
        }
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["A=b"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        self.blob(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            json(CONFIG, config.as_bytes()),
            list.join(",")
        );
        self.blob(manifest.as_bytes());
        manifest.into_bytes()
    }

    /// Gives a document a tag.
    pub(crate) fn tag(&mut self, media_type: &str, document: &[u8], tag: &str) {
        self.blob(document);
        let entry = json(media_type, document);
        let entry = entry.strip_suffix('}').unwrap();
        self.index.push(format!(
            r#"{entry},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}"#
        ));
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            self.index.join(",")
        );
        fs::write(self.directory.path().join("index.json"), index).unwrap();
    }
}
