//! From options to a kernel in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::cache::Cache;
use crate::cancel::{Cancel, Working};
use crate::download::{self, Transfer};
use crate::elf;
use crate::error::Error;
use crate::fragment::{Fragment, merged};
use crate::kernel::{FORMAT, FragmentRecord, Kernel, KernelInfo, name, now};
use crate::key::{KeyBuilder, hex};
use crate::lock::Lock;
use crate::make;
use crate::process::run;
use crate::progress::{Estimator, History, Phase, Progress, make_step};
use crate::publish::{Staging, remove_tree};
use crate::request::{Requests, Resolved};
use crate::source::{self, Source, SourceChoice, SourceError, SourceKind};
use crate::tools::{MissingTools, Toolchain};
use crate::upstream::Upstream;
use crate::verify::unmet;

use sha2::{Digest, Sha256};

/// What to build, and how.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Names of [`crate::FRAGMENTS`] or paths of files, later ones on top.
    pub fragments: Vec<String>,
    /// What to build from.
    pub source: SourceChoice,
    /// The tarball that is fetched where no source is installed.
    pub upstream: Upstream,
    /// Fetch nothing: use what is there.
    pub offline: bool,
    /// Compilers at once; else one for each CPU that this process may use.
    pub jobs: Option<u32>,
    /// Stops the build.
    pub cancel: Cancel,
}

/// How the toolchain is found; tests build without one.
type Detect = fn(&[(&str, &'static str)]) -> Result<Toolchain, MissingTools>;

/// Everything that a kernel is made from, and its hash.
struct Plan {
    fragments: Vec<Fragment>,
    requests: Requests,
    source: Source,
    toolchain: Toolchain,
    hash: String,
}

impl Cache {
    /// The kernel for `options`, built if it is not in the cache. `progress` hears
    /// of every step, from the calling thread. Of two builds of one kernel, in
    /// whatever processes, the second waits for the first and takes its result.
    ///
    /// # Errors
    /// Everything in [`Error`] but the failures to find; nothing half-built stays.
    pub fn build(
        &self,
        options: &BuildOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel, Error> {
        self.build_with(options, Toolchain::detect, progress)
    }

    fn build_with(
        &self,
        options: &BuildOptions,
        detect: Detect,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel, Error> {
        let mut estimator = Estimator::new();
        progress(estimator.enter(Phase::Checking));
        let plan = self.plan(options, detect)?;
        if let Some(kernel) = self.get(&plan.hash) {
            return Ok(kernel);
        }
        let _lock = self.lock_for(&plan.hash, options, &mut || {
            progress(estimator.enter(Phase::Waiting));
        })?;
        match self.get(&plan.hash) {
            Some(kernel) => Ok(kernel),
            None => self.begin(options, &plan, estimator, progress)?.run(),
        }
    }

    /// Whether Kconfig grants everything that `options` ask for, without compiling
    /// anything; and what it makes of them.
    ///
    /// # Errors
    /// As [`Self::build`], [`Error::Unmet`] above all.
    pub fn check(
        &self,
        options: &BuildOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Resolved, Error> {
        let mut estimator = Estimator::new();
        progress(estimator.enter(Phase::Checking));
        let plan = self.plan(options, Toolchain::detect)?;
        let _lock = self.lock_for(&plan.hash, options, &mut || {
            progress(estimator.enter(Phase::Waiting));
        })?;
        self.begin(options, &plan, estimator, progress)?.check()
    }

    /// A build in a fresh scratch directory. The caller holds the lock.
    fn begin<'a>(
        &'a self,
        options: &'a BuildOptions,
        plan: &'a Plan,
        estimator: Estimator,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Build<'a>, Error> {
        let working = options.cancel.begin()?;
        self.sweep(&plan.hash)?;
        let scratch = Scratch::new(self.scratch().join(&plan.hash))?;
        let log_path = self.log(&plan.hash);
        let log = create(&log_path)?;
        Ok(Build {
            cache: self,
            options,
            plan,
            scratch,
            log,
            log_path,
            estimator,
            progress,
            _working: working,
        })
    }

    /// The kernel that [`Self::build`] would give, if it is in the cache.
    ///
    /// # Errors
    /// Fragments or source are wrong, or tools are missing: then nothing says
    /// which kernel would be built.
    pub fn lookup(&self, options: &BuildOptions) -> Result<Option<Kernel>, Error> {
        Ok(self.get(&self.plan(options, Toolchain::detect)?.hash))
    }

    /// Whether all is installed that [`Self::build`] needs for the source that it
    /// finds by itself; and with what it would compile. Nothing is downloaded.
    ///
    /// # Errors
    /// Names all that is missing, with the packages to install.
    pub fn toolchain(&self, upstream: &Upstream) -> Result<Toolchain, MissingTools> {
        let programs = Source::programs_to_get(upstream, self.downloads(), &self.digests());
        Toolchain::detect(&programs)
    }

    fn plan(&self, options: &BuildOptions, detect: Detect) -> Result<Plan, Error> {
        let names = options.fragments.iter();
        let fragments = names
            .map(|name| Fragment::resolve(name))
            .collect::<Result<Vec<_>, _>>()?;
        let requests = merged(&fragments)?;
        let source = Source::find(
            &options.source,
            &options.upstream,
            self.downloads(),
            &self.digests(),
        )?;
        let toolchain = if source.fetch && options.offline {
            // What an empty machine lacks is said at once, not in two rounds.
            let unpacker: Vec<_> = Source::unpacker_of_package().into_iter().collect();
            let package = Source::missing_package();
            detect(&unpacker).map_err(|missing| missing.and(package))?;
            return Err(Source::not_found().into());
        } else {
            detect(&source.programs())?
        };
        let mut key = KeyBuilder::new();
        key.input("source", &source.identity);
        key.input("compiler", &toolchain.compiler);
        key.input("linker", &toolchain.linker);
        for fragment in &fragments {
            key.input("fragment", &fragment.name);
        }
        key.input("requests", &requests.to_config());
        Ok(Plan {
            fragments,
            requests,
            source,
            toolchain,
            hash: key.finish(),
        })
    }

    /// Takes the lock `name`: the hash of a kernel, or the name of a download.
    fn lock_for(
        &self,
        name: &str,
        options: &BuildOptions,
        on_wait: &mut dyn FnMut(),
    ) -> Result<Lock, Error> {
        let path = self.lock(name);
        if let Some(lock) = Lock::try_take(&path).map_err(Error::io("lock", &path))? {
            return Ok(lock);
        }
        on_wait();
        let lock = Lock::take(&path, &options.cancel).map_err(Error::io("lock", &path))?;
        lock.ok_or(Error::Cancelled)
    }

    /// Removes what builds and removals left that were killed: whatever no one
    /// holds the lock of. `ours` is locked by us.
    fn sweep(&self, ours: &str) -> Result<(), Error> {
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        let scratch = self.scratch();
        let unfinished = names(&scratch).map(|hash| (scratch.join(&hash), hash));
        let half = names(self.kernels()).filter_map(|name| {
            let hash = name.strip_prefix(".new-").or(name.strip_prefix(".old-"))?;
            Some((self.kernels().join(&name), hash.to_owned()))
        });
        for (directory, hash) in unfinished.chain(half) {
            let path = self.lock(&hash);
            let lock = match hash == ours {
                true => None,
                false => match Lock::try_take(&path).map_err(Error::io("lock", &path))? {
                    Some(lock) => Some(lock),
                    None => continue,
                },
            };
            remove_tree(&directory)?;
            if lock.is_some() {
                let _ = fs::remove_file(self.log(&hash));
            }
        }
        Ok(())
    }

    /// What the newest kernel took, to estimate the next.
    fn history(&self) -> Option<History> {
        let KernelInfo {
            steps,
            options,
            build_seconds,
            jobs,
            ..
        } = self.list().ok()?.into_iter().next()?.info;
        Some(History {
            steps,
            options,
            job_seconds: build_seconds * f64::from(jobs),
        })
    }
}

/// Where a build works; gone when it ends, in whatever way.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, Error> {
        remove_tree(&path)?;
        for name in ["source", "output"] {
            let directory = path.join(name);
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        Ok(Self(path))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One build, from unpacking to publishing.
struct Build<'a> {
    cache: &'a Cache,
    options: &'a BuildOptions,
    plan: &'a Plan,
    scratch: Scratch,
    log: File,
    log_path: PathBuf,
    estimator: Estimator,
    progress: &'a mut dyn FnMut(Progress),
    /// Last, as fields are dropped in their order: until then there is something.
    _working: Working,
}

impl Build<'_> {
    fn run(mut self) -> Result<Kernel, Error> {
        let result = self.make_kernel();
        self.keep_log_for(result)
    }

    fn check(mut self) -> Result<Resolved, Error> {
        let result = self.unpack().and_then(|source| self.configure(&source));
        self.keep_log_for(result)
    }

    /// The log is for failures of programs; other results speak for themselves.
    fn keep_log_for<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if !matches!(result, Err(Error::Step { .. })) {
            let _ = fs::remove_file(&self.log_path);
        }
        result
    }

    fn make_kernel(&mut self) -> Result<Kernel, Error> {
        let source = self.unpack()?;
        let version = source::version(&source)
            .ok_or_else(|| SourceError::NotSource(self.plan.source.path.clone()))?;
        let resolved = self.configure(&source)?;
        let (seconds, jobs) = self.compile(&source, &resolved)?;
        self.plan.source.verify(&self.cache.digests())?;
        self.publish(self.describe(&version, &resolved, seconds, jobs))
    }

    fn enter(&mut self, phase: Phase) {
        (self.progress)(self.estimator.enter(phase));
    }

    /// The directory to build from.
    fn unpack(&mut self) -> Result<PathBuf, Error> {
        if self.plan.source.kind == SourceKind::Directory {
            return Ok(self.plan.source.path.clone());
        }
        if self.plan.source.fetch {
            self.download()?;
        }
        self.enter(Phase::Unpacking);
        let directory = self.scratch.join("source");
        let tar = make::unpack(&self.plan.source.path, &directory);
        self.execute("unpacking the source", tar, |line| Some(line))?;
        if source::is_tree(&directory) {
            Ok(directory)
        } else {
            Err(SourceError::NotInTarball(self.plan.source.path.clone()).into())
        }
    }

    /// Fetches the upstream tarball, unless another build has just done it.
    fn download(&mut self) -> Result<(), Error> {
        let Self { cache, options, .. } = *self;
        let upstream = &options.upstream;
        let target = &self.plan.source.path;
        let _lock = cache.lock_for(&upstream.file_name(), options, &mut || {
            (self.progress)(self.estimator.enter(Phase::Waiting));
        })?;
        let now = Source::find(
            &SourceChoice::Upstream,
            upstream,
            cache.downloads(),
            &cache.digests(),
        )?;
        if !now.fetch {
            return Ok(());
        }
        let url = upstream.url();
        let mut begin = self.estimator.enter(Phase::Downloading);
        begin.detail.clone_from(&url);
        (self.progress)(begin);
        let started = Instant::now();
        let mut from = None;
        let mut show = |now: Transfer| {
            let from = *from.get_or_insert(now.done);
            let elapsed = started.elapsed();
            (self.progress)(self.estimator.download(&url, now, from, elapsed));
        };
        download::fetch(
            upstream,
            target,
            download::STALL,
            &options.cancel,
            &mut show,
        )?;
        Ok(())
    }

    /// Lets Kconfig resolve the requests, and compares.
    fn configure(&mut self, source: &Path) -> Result<Resolved, Error> {
        self.enter(Phase::Configuring);
        let requests = self.scratch.join("requests.config");
        fs::write(&requests, self.plan.requests.to_config())
            .map_err(Error::io("write", &requests))?;
        let output = self.scratch.join("output");
        let make = make::configure(source, &output, &requests);
        self.execute("configuring the kernel", make, make_step)?;
        let resolved = Resolved::parse(&read(&output.join(".config"))?);
        let unmet = unmet(&self.plan.requests, &resolved, source);
        if unmet.is_empty() {
            Ok(resolved)
        } else {
            Err(Error::Unmet(unmet))
        }
    }

    /// Compiles; the time it took in seconds, and with how many jobs.
    fn compile(&mut self, source: &Path, resolved: &Resolved) -> Result<(f64, u32), Error> {
        let available =
            || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let jobs = self
            .options
            .jobs
            .unwrap_or_else(|| saturate(available()))
            .max(1);
        let history = self.cache.history();
        (self.progress)(
            self.estimator
                .compile(saturate(resolved.enabled()), jobs, history),
        );
        let started = Instant::now();
        let make = make::compile(source, &self.scratch.join("output"), jobs);
        self.execute("compiling the kernel", make, make_step)?;
        Ok((started.elapsed().as_secs_f64(), jobs))
    }

    /// Runs a command; `step` says which lines of its output are steps.
    fn execute(
        &mut self,
        what: &'static str,
        command: Command,
        step: fn(&str) -> Option<&str>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        run(command, &self.options.cancel, &mut self.log, &mut |line| {
            if let Some(detail) = step(line) {
                (self.progress)(self.estimator.step(detail, started.elapsed()));
            }
        })
        .map_err(|error| Error::step(what, &self.log_path, &self.scratch.0, error))
    }

    fn describe(&self, version: &str, resolved: &Resolved, seconds: f64, jobs: u32) -> KernelInfo {
        let plan = self.plan;
        let suffix = resolved.get("LOCALVERSION").to_string();
        let record = |fragment: &Fragment| FragmentRecord {
            name: fragment.name.clone(),
            sha256: hex(&Sha256::digest(&fragment.text)),
        };
        KernelInfo {
            format: FORMAT,
            hash: plan.hash.clone(),
            name: name(plan.fragments.iter().map(|fragment| fragment.name.as_str())),
            release: format!("{version}{}", suffix.trim_matches('"')),
            source: plan.source.path.clone(),
            source_identity: plan.source.identity.clone(),
            fragments: plan.fragments.iter().map(record).collect(),
            request_sha256: plan.requests.digest(),
            compiler: plan.toolchain.compiler.clone(),
            linker: plan.toolchain.linker.clone(),
            bytes: 0,
            sha256: String::new(),
            built_at: now(),
            build_seconds: seconds,
            jobs,
            steps: self.estimator.steps(),
            options: saturate(resolved.enabled()),
        }
    }

    /// Moves what is worth keeping into the cache.
    fn publish(&mut self, mut info: KernelInfo) -> Result<Kernel, Error> {
        self.enter(Phase::Publishing);
        let output = self.scratch.join("output");
        let directory = self.cache.directory(&self.plan.hash);
        let staging = Staging::new(&directory)?;

        let linked = output.join("vmlinux");
        let image = fs::read(&linked).map_err(Error::io("read", &linked))?;
        let mut vmlinux = Vec::new();
        info.bytes = elf::compact(&image, &mut vmlinux)?;
        info.sha256 = hex(&Sha256::digest(&vmlinux));
        staging.write("vmlinux", &vmlinux)?;
        for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
            let path = output.join(from);
            fs::copy(&path, staging.file(to)).map_err(Error::io("copy", &path))?;
        }
        staging.write("requests", self.plan.requests.to_config().as_bytes())?;
        if has_debug_information(&output)? {
            fs::rename(&linked, staging.file("vmlinux.debug"))
                .map_err(Error::io("move", &linked))?;
        }
        let meta = serde_json::to_string_pretty(&info)
            .map_err(|error| Error::io("describe the kernel in", &directory)(error.into()))?;
        staging.write("meta.json", meta.as_bytes())?;
        // The last moment to stop: from here on there is a kernel.
        if self.options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        staging.publish()?;
        Ok(Kernel { info, directory })
    }
}

fn has_debug_information(output: &Path) -> Result<bool, Error> {
    let resolved = Resolved::parse(&read(&output.join(".config"))?);
    Ok(resolved.get("DEBUG_INFO").to_string() == "y")
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

fn create(path: &Path) -> Result<File, Error> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    }
    File::create(path).map_err(Error::io("create", path))
}

fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
