//! Whole builds, of a source tree whose Makefile only plays a kernel's.

use std::sync::Mutex;
use std::thread;

use super::*;
use crate::download::tests::{Answer, Server};
use crate::elf::tests::small_kernel;

/// A cache, and a tree in which `make vmlinux` is `recipe`.
struct Bench {
    directory: tempfile::TempDir,
    cache: Cache,
}

/// What `vmlinux` takes: a step, a trace that it ran, and the results.
const GOOD: &str = "@echo '  CC      a.o'; echo ran >> $(BENCH)/runs; \
                    cp $(BENCH)/image $(O)/vmlinux; touch $(O)/System.map";

impl Bench {
    fn new(recipe: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let cache = Cache::at(&path.join("cache"));
        fs::create_dir(path.join("tree")).unwrap();
        fs::write(
            path.join("tree/Kconfig"),
            "config DROPPED\n\tdepends on LUCK\n",
        )
        .unwrap();
        fs::write(path.join("image"), small_kernel()).unwrap();
        let makefile = format!(
            "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\nEXTRAVERSION =\nBENCH = {}\n\
             allnoconfig:\n\t@grep -v DROPPED $(KCONFIG_ALLCONFIG) > $(O)/.config\n\
             vmlinux:\n\t{recipe}\n",
            path.display()
        );
        fs::write(path.join("tree/Makefile"), makefile).unwrap();
        Self { directory, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn options(&self) -> BuildOptions {
        BuildOptions {
            source: SourceChoice::Path(self.path("tree")),
            ..Default::default()
        }
    }

    fn build(&self, options: &BuildOptions) -> Result<Kernel, Error> {
        self.cache.build_with(options, detect, &mut |_| ())
    }

    fn hash(&self, options: &BuildOptions) -> String {
        self.cache.plan(options, detect).unwrap().hash
    }

    /// How often `make vmlinux` ran to its end.
    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs"))
            .unwrap_or_default()
            .lines()
            .count()
    }

    fn fragment(&self, text: &str) -> String {
        let path = self.path("mine.config");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn assert_no_scratch(&self) {
        assert_eq!(fs::read_dir(self.cache.scratch()).unwrap().count(), 0);
    }
}

#[allow(clippy::unnecessary_wraps)] // The signature of the real one.
fn detect(_source: &[(&str, &'static str)]) -> Result<Toolchain, MissingTools> {
    Ok(Toolchain {
        compiler: "gcc 1".into(),
        linker: "ld 1".into(),
    })
}

#[test]
fn a_build_ends_in_the_cache_and_the_next_one_takes_it_from_there() {
    let bench = Bench::new(GOOD);
    let options = bench.options();
    let mut last = 0.0;
    let mut phases = Vec::new();
    let kernel = bench
        .cache
        .build_with(&options, detect, &mut |progress| {
            assert!(progress.fraction >= last, "{progress:?}");
            last = progress.fraction;
            phases.push(progress.phase);
        })
        .unwrap();
    assert!(
        phases.is_sorted() && phases.last() == Some(&Phase::Publishing),
        "{phases:?}"
    );
    assert_eq!(
        (kernel.info.name.as_str(), kernel.info.release.as_str()),
        ("base", "6.12.1-flashpan")
    );
    assert_eq!(
        fs::metadata(kernel.vmlinux()).unwrap().len(),
        kernel.info.bytes
    );
    assert!(kernel.config().unwrap().contains("CONFIG_SMP=y\n"));
    assert_eq!(bench.build(&options).unwrap(), kernel);
    assert_eq!(bench.runs(), 1);
    assert_eq!(bench.cache.find(None).unwrap(), kernel);
    bench.assert_no_scratch();
}

#[test]
fn a_dropped_option_ends_the_build_before_anything_is_compiled() {
    let bench = Bench::new(GOOD);
    let mut options = bench.options();
    options.fragments = vec![bench.fragment("CONFIG_DROPPED=y\n")];
    let error = bench.build(&options).unwrap_err();
    assert!(
        matches!(&error, Error::Unmet(unmet) if unmet.len() == 1),
        "{error}"
    );
    let text = error.to_string();
    for part in [
        "CONFIG_DROPPED",
        "mine (line 1)",
        "asks for y",
        "gives n",
        "LUCK",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!((bench.runs(), bench.cache.list().unwrap().len()), (0, 0));
    bench.assert_no_scratch();
}

#[test]
fn a_failure_shows_the_last_lines_and_keeps_the_log() {
    let bench = Bench::new("@echo 'a.c:1: error: bad luck'; exit 1");
    let error = bench.build(&bench.options()).unwrap_err();
    let Error::Step { log, .. } = &error else {
        panic!("{error}")
    };
    assert!(fs::read_to_string(log).unwrap().contains("bad luck"));
    assert!(
        error.to_string().contains("a.c:1: error: bad luck"),
        "{error}"
    );
    assert_eq!(bench.cache.list().unwrap(), []);
    bench.assert_no_scratch();
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let bench = Bench::new("@echo 'ld: a.o: No space left on device'; echo more; exit 1");
    let error = bench.build(&bench.options()).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    let text = error.to_string();
    for part in ["ld: a.o", "compiling", "XDG_CACHE_HOME"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    bench.assert_no_scratch();
}

#[test]
fn a_tarball_of_something_else_is_refused() {
    let bench = Bench::new(GOOD);
    fs::remove_file(bench.path("tree/Kconfig")).unwrap();
    let tarball = pack(&bench);
    let mut options = bench.options();
    options.source = SourceChoice::Path(tarball);
    let error = bench.build(&options).unwrap_err().to_string();
    assert!(error.contains("holds no kernel source"), "{error}");
    bench.assert_no_scratch();
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    let bench = Bench::new("@echo '  CC      a.o'; sleep 1000");
    let options = bench.options();
    let error = bench
        .cache
        .build_with(&options, detect, &mut |progress| {
            if progress.detail == "a.o" {
                options.cancel.cancel();
            }
        })
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(bench.cache.list().unwrap(), []);
    assert!(!bench.cache.log(&bench.hash(&options)).exists());
    bench.assert_no_scratch();
}

#[test]
fn a_killed_build_is_cleaned_up_by_the_next() {
    let bench = Bench::new(GOOD);
    let abandoned = Scratch::new(bench.cache.scratch().join("0123")).unwrap();
    std::mem::forget(abandoned);
    bench.build(&bench.options()).unwrap();
    bench.assert_no_scratch();
}

#[test]
fn what_a_killed_publication_or_removal_left_goes_unless_somebody_is_at_it() {
    let bench = Bench::new(GOOD);
    let options = bench.options();
    let left = |name: &str| {
        let path = bench.cache.directory(name);
        fs::create_dir_all(path.join("inner")).unwrap();
        path
    };
    let ours = format!(".old-{}", bench.hash(&options));
    let gone = [".new-0123", ".old-4567", &ours].map(left);
    let busy = left(".new-89ab");
    let _lock = Lock::try_take(&bench.cache.lock("89ab")).unwrap().unwrap();
    bench.build(&options).unwrap();
    assert!(gone.iter().all(|path| !path.exists()));
    assert!(busy.exists());
}

#[test]
fn a_source_that_changes_under_its_build_makes_no_kernel() {
    let edit = "echo 'config MORE' >> $(BENCH)/tree/Kconfig";
    let bench = Bench::new(&format!("@{edit}\n\t{GOOD}"));
    let error = bench.build(&bench.options()).unwrap_err().to_string();
    assert!(
        error.contains("changed while the kernel was built"),
        "{error}"
    );
    assert_eq!(bench.cache.list().unwrap(), []);
    bench.assert_no_scratch();
}

#[test]
fn of_two_builds_of_one_kernel_one_compiles() {
    // The first stops in make until somebody writes into the pipe, which the
    // second does when it starts to wait.
    let bench = Bench::new(&format!(
        "@echo '  CC      stop'; cat $(BENCH)/pipe\n\t{GOOD}"
    ));
    let pipe = bench.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let options = bench.options();
    let (stopped, second) = std::sync::mpsc::channel();
    let waited = Mutex::new(false);
    let (first, second) = thread::scope(|scope| {
        let one = scope.spawn(|| {
            let stopped = stopped;
            bench.cache.build_with(&options, detect, &mut |progress| {
                if progress.detail == "stop" {
                    stopped.send(()).unwrap();
                }
            })
        });
        second.recv().unwrap();
        let two = bench.cache.build_with(&options, detect, &mut |progress| {
            if progress.phase == Phase::Waiting {
                *waited.lock().unwrap() = true;
                fs::write(&pipe, "go on\n").unwrap();
            }
        });
        (one.join().unwrap().unwrap(), two.unwrap())
    });
    assert_eq!(first, second);
    assert!(*waited.lock().unwrap());
    assert_eq!(bench.runs(), 1);
}

#[test]
fn the_hash_depends_on_all_inputs_and_nothing_else() {
    let bench = Bench::new(GOOD);
    let mut options = bench.options();
    let base = bench.hash(&options);
    options.jobs = Some(7);
    assert_eq!(bench.hash(&options), base, "jobs change nothing");

    options.fragments = vec![bench.fragment("CONFIG_A=y\nCONFIG_B=y\n")];
    let fragment = bench.hash(&options);
    assert_ne!(fragment, base);
    bench.fragment("# a comment, another order\nCONFIG_B=y\nCONFIG_A=y\n");
    assert_eq!(bench.hash(&options), fragment);
    bench.fragment("CONFIG_A=y\n# CONFIG_B is not set\n");
    assert_ne!(bench.hash(&options), fragment);

    let newer: Detect = |_| {
        Ok(Toolchain {
            compiler: "gcc 2".into(),
            linker: "ld 1".into(),
        })
    };
    assert_ne!(
        bench.cache.plan(&bench.options(), newer).unwrap().hash,
        base
    );
    fs::write(bench.path("tree/Kconfig"), "another source\n").unwrap();
    assert_ne!(bench.hash(&bench.options()), base);
}

#[test]
fn an_empty_machine_is_told_everything_at_once() {
    let bench = Bench::new(GOOD);
    let nothing: Detect = |_| {
        let tool = |what: &str, package| crate::MissingTool {
            what: what.into(),
            package,
        };
        Err(MissingTools(vec![
            tool("make", "make"),
            tool("xz", "xz-utils"),
        ]))
    };
    let error = bench
        .cache
        .plan(&bench.options(), nothing)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("apt-get install make xz-utils"), "{error}");
}

/// A tarball of the tree.
fn pack(bench: &Bench) -> PathBuf {
    let tarball = bench.path("tree.tar.xz");
    let tar = Command::new("tar")
        .args(["--create", "--xz", "--file"])
        .args([&tarball, Path::new("--directory"), bench.directory.path()])
        .arg("tree")
        .status();
    assert!(tar.unwrap().success());
    tarball
}

/// Options for a tarball of the tree, which `answers` of a server give or not.
fn upstream(bench: &Bench, answers: Vec<Answer>) -> (Server, BuildOptions) {
    let file = fs::read(pack(bench)).unwrap();
    let digest = hex(&Sha256::digest(&file));
    let server = Server::new(file, answers);
    let mirror = Upstream::default().with_mirror(&server.url).unwrap();
    let options = BuildOptions {
        source: SourceChoice::Upstream,
        upstream: mirror.with_pin("6.12.1", &digest),
        ..Default::default()
    };
    (server, options)
}

#[test]
fn a_kernel_is_built_from_what_was_downloaded_once() {
    let bench = Bench::new(GOOD);
    let (_server, mut options) = upstream(&bench, vec![Answer::Good]);
    let mut phases = Vec::new();
    let kernel = bench
        .cache
        .build_with(&options, detect, &mut |progress| {
            if progress.phase == Phase::Downloading {
                assert_eq!(progress.detail, options.upstream.url());
            }
            phases.push(progress.phase);
        })
        .unwrap();
    phases.dedup();
    assert!(
        phases.starts_with(&[Phase::Checking, Phase::Downloading, Phase::Unpacking]),
        "{phases:?}"
    );
    assert_eq!(kernel.info.release, "6.12.1-flashpan");
    assert!(
        kernel
            .info
            .source_identity
            .ends_with(&options.upstream.sha256)
    );

    // The server is gone: another kernel takes the same tarball.
    options.fragments = vec![bench.fragment("CONFIG_A=y\n")];
    options.offline = true;
    bench.build(&options).unwrap();
    // And a kernel that is there needs no tarball.
    fs::remove_dir_all(bench.cache.downloads()).unwrap();
    options.fragments.clear();
    options.offline = false;
    assert_eq!(bench.build(&options).unwrap(), kernel);
    assert_eq!(bench.runs(), 2);
}

#[test]
fn nothing_is_fetched_when_that_is_not_wanted() {
    let bench = Bench::new(GOOD);
    let (server, mut options) = upstream(&bench, vec![Answer::Good]);
    options.offline = true;
    let error = bench.build(&options).unwrap_err().to_string();
    assert!(
        error.contains("apt-get install linux-source-6.12") && error.contains("--source"),
        "{error}"
    );
    assert!(server.ranges.try_recv().is_err());
}

#[test]
fn a_failed_download_leaves_no_half_kernel() {
    let bench = Bench::new(GOOD);
    let (_server, options) = upstream(&bench, vec![Answer::Status("503 Busy")]);
    let error = bench.build(&options).unwrap_err();
    assert!(matches!(error, Error::Download(_)), "{error}");
    assert_eq!(bench.cache.list().unwrap(), []);
    bench.assert_no_scratch();
}
