//! VMs that outlive the command that makes them: what is kept of a command line, and
//! the process that such a VM lives in.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flashpan::api::{Config, Secret, SecretValue};
use flashpan::launch::{HostOptions, LaunchError, PullPolicy, RootSource, Silent, UpperSource};
use flashpan::state::{NewVm, Programs, Publish, Record, Vm, Vms};
use flashpan::supervise::{self, Launching, NotStarted, StartOptions, Starter};
use flashpan::{Error, Launch, Sandbox};
use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::disk;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::failure::{Failure, say};
use crate::{full, parse, pin, publish, secrets};

/// The file in a VM's directory that takes the writes to its root.
const UPPER: &str = "upper.ext4";

/// How long what is left of a crashed run may keep the VM's disk.
const DISK_WITHIN: Duration = Duration::from_secs(30);

/// What a VM is launched from, in its record. Where its disk is counts from the VM's
/// directory.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    config: Config,
    options: HostOptions,
}

/// What is wanted of a VM besides what it is launched from.
#[derive(Debug)]
pub(crate) struct Wishes<'a> {
    pub(crate) name: Option<&'a str>,
    /// As it was asked for.
    pub(crate) image: Option<String>,
    pub(crate) remove: bool,
    pub(crate) publish: Publish,
    pub(crate) grace: Option<Duration>,
    pub(crate) programs: Programs,
}

/// Begins to make a VM: now it has its id.
pub(crate) fn begin() -> Result<NewVm, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    vms.create().map_err(Failure::new)
}

/// Puts a VM in the list.
pub(crate) fn create(new: NewVm, wishes: Wishes<'_>, launch: Launch) -> Result<Vm, Failure> {
    let mut asked = settled(&launch)?;
    let image = launch.image_id().map(str::to_owned);
    // Its supervisor opens and locks the same disks.
    drop(launch);
    if asked.options.upper == UpperSource::Scratch && !wishes.remove {
        let resources = asked.config.resources.clone().unwrap_or_default();
        make_disk(
            &new,
            resources
                .disk_size_mb_or_default()
                .saturating_mul(parse::MIB),
        )?;
        asked.options.upper = UpperSource::Disk(UPPER.into());
    }
    let launch = serde_json::to_value(asked)
        .map_err(|e| Failure::new(format!("cannot describe the VM: {e}")))?;
    let mut record = Record::new(launch);
    record.name = wishes.name.map(str::to_owned);
    record.image = wishes.image;
    record.remove = wishes.remove;
    record.publish = wishes.publish;
    record.grace_ms = wishes
        .grace
        .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    record.programs = wishes.programs;
    if let Some(image) = image.filter(|_| !wishes.remove) {
        pin::pin(new.id(), &image)?;
    }
    let id = new.id().to_owned();
    let published = new.publish(record).map_err(Failure::new);
    published.inspect_err(|_| pin::release(&id))
}

/// The same VM when it is launched again, from anywhere: paths are absolute, kernel and
/// image those that were found.
fn settled(launch: &Launch) -> Result<Asked, Failure> {
    let here = std::env::current_dir()
        .map_err(|e| Failure::new(format!("cannot find the current directory: {e}")))?;
    let (mut config, options) = (launch.config().clone(), launch.options().clone());
    let mut options = options.absolute(&here);
    if let Some(id) = launch.image_id()
        && let RootSource::Image(source) = &mut options.root
    {
        id.clone_into(&mut config.image);
        source.pull = PullPolicy::Never;
    }
    for disk in &mut config.extra_disks {
        let path = Path::new(&disk.host_path);
        if disk.host_path.starts_with('@') || path.is_absolute() {
            continue;
        }
        let path = here.join(path).into_os_string();
        disk.host_path = path.into_string().map_err(|path| {
            Failure::new(format!(
                "the path {} is not UTF-8, and what is kept of a VM is",
                path.display()
            ))
        })?;
    }
    // Programs may have written placeholders to the VM's disk: they stay the same.
    let secrets = config
        .network
        .iter_mut()
        .flat_map(|network| &mut network.secrets);
    for (_, secret) in secrets.filter(|(_, secret)| secret.placeholder.is_empty()) {
        secret.placeholder = Secret::random_placeholder()
            .map_err(|e| Failure::new(format!("cannot make a placeholder: {e}")))?;
    }
    // Values of secrets are nowhere but in the memory of who needs them.
    let config = config.redacted();
    Ok(Asked { config, options })
}

fn make_disk(new: &NewVm, size: u64) -> Result<(), Failure> {
    let cache = Cache::user().map_err(Failure::new)?;
    let made = disk::kept(&new.directory().join(UPPER), size, &cache);
    let places = [new.directory(), cache.path()];
    made.map(drop).map_err(|e| full::failure(&e, &places, None))
}

/// The values of a VM's secrets, from where they came from when it was made; those in
/// `given` go before.
pub(crate) fn secrets_of(
    vm: &Vm,
    mut given: BTreeMap<String, SecretValue>,
) -> Result<BTreeMap<String, SecretValue>, Failure> {
    let asked: Asked = serde_json::from_value(vm.record().launch.clone())
        .map_err(|e| Failure::new(format!("cannot understand what the VM was made from: {e}")))?;
    let names = asked
        .config
        .network
        .into_iter()
        .flat_map(|network| network.secrets);
    let mut values = BTreeMap::new();
    for (name, _) in names {
        let value = match (given.remove(&name), asked.options.secret_sources.get(&name)) {
            (Some(value), _) => value,
            (None, Some(source)) => secrets::read(&name, source)?,
            (None, None) => {
                return Err(Failure::new(format!(
                    "the value of the secret {name} was not kept; give it again with --secret \
                     {name}=VALUE or --secret-file {name}=FILE"
                )));
            }
        };
        values.insert(name, value);
    }
    match given.into_keys().next() {
        None => Ok(values),
        Some(name) => Err(Failure::new(format!("the VM has no secret {name}"))),
    }
}

/// Starts a VM that is in the list, and waits until it is ready.
pub(crate) fn start(vm: &Vm, options: StartOptions) -> Result<(), Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let program = std::env::current_exe()
        .map_err(|e| Failure::new(format!("cannot find the running program's own path: {e}")))?;
    let mut supervisor = Command::new(program);
    supervisor.arg(SUPERVISE);
    let started = supervise::start(supervisor, &vms, vm.id(), options).map_err(Failure::from)?;
    for warning in started.warnings {
        say("warning", &format!("guest: {warning}"));
    }
    if !vm.record().publish.is_empty() {
        // Looked at again: now it is known which ports they are.
        // One that has ended already has none.
        if let Ok(vm) = vms.find(vm.id()) {
            publish::tell(vm.run().map(|run| run.ports.as_slice()).unwrap_or_default());
        }
    }
    Ok(())
}

/// Name of the command that [`start`] runs.
pub(crate) const SUPERVISE: &str = "supervise";

pub(crate) const SUPERVISE_EXAMPLES: &str = "\
Example:
  flashpan start web      runs this, and nobody else does";

/// Is the process that a VM lives in
#[derive(Debug, Args)]
#[command(after_help = SUPERVISE_EXAMPLES)]
pub(crate) struct SuperviseArgs {}

/// Runs `flashpan supervise`. All that it has to say goes to its starter.
pub(crate) fn supervisor() -> Result<u8, Failure> {
    let starter = Starter::take()?;
    crate::runtime(async {
        supervise::supervise(starter, launch).await;
        // Not when the last thread has ended: one may still make the root of a VM that
        // is not wanted any more, and hold its disks.
        std::process::exit(0)
    })
}

async fn launch(mut launching: Launching) -> Result<Sandbox, NotStarted> {
    let asked: Asked = serde_json::from_value(launching.record().launch.clone()).map_err(|e| {
        NotStarted::new(format!(
            "cannot understand what the VM {} was made from: {e}",
            launching.record().id
        ))
    })?;
    let Asked {
        mut config,
        mut options,
    } = asked;
    let values = launching.take_secrets();
    options.secrets_given = launching.take_secrets_given();
    if let Some(network) = &mut config.network {
        for (name, secret) in &mut network.secrets {
            if let Some(value) = values.get(name) {
                secret.value = value.clone();
            }
        }
    }
    if let UpperSource::Disk(path) = &options.upper {
        let path = launching.directory().join(path);
        find_disk(&path).await?;
        options.upper = UpperSource::Disk(path);
    }
    // This thread lives as long as the process, and the VMM no longer.
    options.end_with_thread = true;
    let launch = Launch::new(config, options, Arc::new(Silent)).await;
    let launch = launch.map_err(|error| not_launched(error, launching.record()))?;
    let mut builder = launch.builder()?;
    if launch.keeps_something() {
        // As `flashpan stop` would.
        builder = builder.time_limit_end(launching.record().grace(), supervise::WITHIN);
    } else {
        launching.keeps_nothing();
    }
    if let Some(sink) = launching.take_console() {
        builder = builder.console_sink(sink);
    }
    builder = builder.output_sink(launching.output());
    Ok(launch.boot_as(builder).await?)
}

fn not_launched(error: flashpan::Error, record: &Record) -> NotStarted {
    let Error::Launch(launch) = &error else {
        return error.into();
    };
    if let LaunchError::ImageMissing(_) = &**launch {
        let name = record.image.as_deref().unwrap_or("its name is not known");
        return NotStarted::new(format!(
            "the image that this VM was made from is not in the store any more ({name}); pull \
             or import it again, or remove the VM"
        ));
    }
    let places = launch.places();
    let places: Vec<_> = places.iter().map(PathBuf::as_path).collect();
    full::failure(&**launch, &places, None).into()
}

/// Finds the disk of a VM that is kept, and waits for who may still have it. One that
/// is gone is not just made anew.
async fn find_disk(path: &Path) -> Result<(), Failure> {
    let there = path
        .try_exists()
        .map_err(|e| Failure::new(format!("cannot look at {}: {e}", path.display())))?;
    if !there {
        return Err(Failure::new(format!(
            "the VM's disk {} is gone; put it back, or remove the VM",
            path.display()
        )));
    }
    wait_for_disk(path).await
}

/// Waits until nobody has a disk that is ours: a VMM whose supervisor was killed may
/// take a moment to end.
async fn wait_for_disk(path: &Path) -> Result<(), Failure> {
    let failed = |e| Failure::new(format!("cannot lock {}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let (done, locked) = oneshot::channel();
    // A thread of its own: one that waits for too long is left behind.
    std::thread::Builder::new()
        .name("disk".to_owned())
        .spawn(move || drop(done.send(file.lock().map(|()| file))))
        .map_err(failed)?;
    match timeout(DISK_WITHIN, locked).await {
        // Let go of again, by closing it here and nowhere else.
        Ok(Ok(result)) => result.map(drop).map_err(failed),
        Ok(Err(_)) => Ok(()),
        Err(_) => Err(Failure::new(format!(
            "another process has had {} for {DISK_WITHIN:?}; end it first",
            path.display()
        ))),
    }
}

impl From<NotStarted> for Failure {
    fn from(why: NotStarted) -> Self {
        Self::with_code(why.code, why.message)
    }
}

impl From<Failure> for NotStarted {
    fn from(failure: Failure) -> Self {
        let message = match failure.message() {
            "" => "the VM could not be launched",
            message => message,
        };
        Self {
            code: failure.code,
            message: message.to_owned(),
        }
    }
}
