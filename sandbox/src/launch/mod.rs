//! From a configuration to a VM: what it is made from is found, checked and held,
//! and then it is booted.
//!
//! A [`Config`] says what the VM is, [`HostOptions`] add what only this host knows.
//! Everything that can be wrong is found before anything takes long, and before
//! anything is started:
//!
//! 1. [`Launch::check`] looks at the configuration, at the kernel, at the disks
//!    (which it locks) and at the store of images.
//! 2. [`Checked::pull`] pulls the image if it is not there.
//! 3. [`Checked::finish`] makes the root image of a directory if it is not as it
//!    was. The [`Launch`] has everything open that its VMs get.
//! 4. [`Launch::boot`], as often as wanted.
//!
//! [`Launch::new`] does the first three, [`crate::Sandbox::create`] all four.
//! Fields of a configuration that this version cannot obey are refused by name
//! ([`Unsupported`]), never ignored.

mod check;
mod defaults;
mod disks;
mod error;
mod image;
mod options;
mod progress;
mod refuse;
mod root;
mod vm;

pub use flashpan_rootfs::image_config::Overrides;
pub use flashpan_rootfs::platform::Platform;
pub use flashpan_rootfs::store::Cancel;

pub use check::Checked;
pub use defaults::ExecDefaults;
pub use error::LaunchError;
pub use options::{
    HostOptions, ImageSource, PullPolicy, RegistryOptions, RootSource, SecretSource, TimeLimit,
    UpperSource,
};
pub use progress::{Event, ImageEvent, Progress, RootEvent, Silent};
pub use refuse::Unsupported;
pub use vm::Launch;

use std::sync::Arc;

use crate::api::Config;
use crate::error::Result;
use crate::sandbox::Sandbox;

impl Sandbox {
    /// Makes a VM from a configuration and waits until its guest can run programs.
    /// For progress, or to make several VMs from one configuration, see
    /// [`Launch::new`].
    ///
    /// ```no_run
    /// use flashpan::api::Config;
    /// use flashpan::launch::HostOptions;
    /// use flashpan::{ExecOptions, Sandbox};
    ///
    /// # async fn example() -> Result<(), flashpan::Error> {
    /// let mut config = Config::default();
    /// config.image = "python:3.12-slim".into();
    /// config.env.insert("LANG".into(), "C.UTF-8".into());
    /// let sandbox = Sandbox::create(config, HostOptions::new("vmlinux")).await?;
    /// let hello = sandbox.exec(ExecOptions::argv(["python3", "-c", "print(6*7)"])).await?;
    /// assert_eq!(hello.collect(4096).await?.stdout, b"42\n");
    /// sandbox.shutdown(std::time::Duration::from_secs(2)).await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Programs get the surroundings that the configuration and its image want them to
    /// have: variables, working directory, user, privileges, as [`Sandbox::exec`] says.
    /// The image's own command is run by [`Sandbox::exec_defaults`].
    ///
    /// # Errors
    /// [`crate::Error::ConfigInvalid`], [`crate::Error::Unsupported`] and
    /// [`crate::Error::Launch`] before anything is started, and what prevents the
    /// guest from coming up.
    pub async fn create(config: Config, options: HostOptions) -> Result<Self> {
        Launch::new(config, options, Arc::new(Silent))
            .await?
            .boot()
            .await
    }
}
