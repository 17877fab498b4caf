//! What program to run in a guest, and how.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use flashpan_protocol::agent::{Bytes, Command, ExecInput, ExecRequest, MAX_FRAME, TerminalSize};
use flashpan_protocol::frame;

use crate::error::{Error, Result};
use crate::privilege::Privilege;

/// The `PATH` of programs unless the caller sets another.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `TERM` of programs on a terminal unless the caller sets another.
const DEFAULT_TERM: &str = "xterm-256color";

/// A program to run and its surroundings.
#[derive(Debug, Clone)]
#[must_use = "options do nothing until `Sandbox::exec`"]
pub struct ExecOptions {
    command: Command,
    env: Vec<(OsString, OsString)>,
    working_dir: Option<OsString>,
    make_working_dir: Option<bool>,
    user: Option<String>,
    stdin: bool,
    terminal: Option<TerminalSize>,
    linger: bool,
    timeout: Option<Duration>,
    privilege: Option<Privilege>,
    bare: bool,
}

impl ExecOptions {
    /// A program and its arguments; no shell is involved. A name without a
    /// slash is looked up in the guest's `PATH`.
    pub fn argv<I>(argv: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let argv = argv
            .into_iter()
            .map(|a| bytes(a.as_ref().to_owned()))
            .collect();
        Self::new(Command::Argv(argv))
    }

    /// One string for `/bin/sh -c` in the guest.
    pub fn shell(script: impl Into<OsString>) -> Self {
        Self::new(Command::Shell(bytes(script.into())))
    }

    fn new(command: Command) -> Self {
        Self {
            command,
            env: Vec::new(),
            working_dir: None,
            make_working_dir: None,
            user: None,
            stdin: false,
            terminal: None,
            linger: false,
            timeout: None,
            privilege: None,
            bare: false,
        }
    }

    /// Leaves out what the VM's configuration and image say of its programs: variables,
    /// working directory, user and privileges are what these options say and nothing
    /// else. Otherwise [`crate::Sandbox::exec`] takes from there what is not set here.
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Sets a variable; later calls win. Others are those of the VM's configuration and
    /// image; `PATH` is [`DEFAULT_PATH`] if nobody sets it, and nothing of this process's
    /// own environment is passed on.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets a variable unless [`Self::env`] does, before or after this.
    pub fn default_env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        // Of several of one name the last one counts.
        self.env.insert(0, (name.into(), value.into()));
        self
    }

    /// Sets the working directory; otherwise that of the VM's configuration or image,
    /// or `/`.
    pub fn working_dir(mut self, dir: impl Into<OsString>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// Sets the working directory unless it is set.
    pub(crate) fn default_working_dir(mut self, dir: impl Into<OsString>, make: bool) -> Self {
        if self.working_dir.is_none() {
            self.working_dir = Some(dir.into());
            self.make_working_dir.get_or_insert(make);
        }
        self
    }

    /// Sets the privileges unless they are set.
    pub(crate) fn default_privilege(mut self, privilege: &Privilege) -> Self {
        self.privilege.get_or_insert_with(|| privilege.clone());
        self
    }

    /// Sets the user unless one is set.
    pub(crate) fn default_user(mut self, user: impl Into<String>) -> Self {
        self.user.get_or_insert_with(|| user.into());
        self
    }

    /// Whether a working directory that is missing is made, for root and with
    /// mode 755; to start in one is an error otherwise, but the directory that an image
    /// names is made.
    pub fn make_working_dir(mut self, make: bool) -> Self {
        self.make_working_dir = Some(make);
        self
    }

    /// Runs as `name`, `uid`, `name:group` or `uid:gid` of the guest; otherwise as the
    /// VM's configuration or image says, or as root.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Whether input will be sent; `/dev/null` otherwise. [`crate::Sandbox::spawn`] can
    /// send none, and refuses it.
    pub fn stdin(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    /// Runs on a pseudo-terminal of this size. All output is then standard
    /// output.
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// Whether processes that the program leaves behind live on.
    pub fn linger(mut self, linger: bool) -> Self {
        self.linger = linger;
        self
    }

    /// How long the program may take, from the call of [`crate::Sandbox::exec`] on:
    /// then it gets SIGTERM, and SIGKILL 2 seconds later with all that it started,
    /// and waiting for it is [`Error::ProgramTimeout`]. As long as it likes
    /// otherwise, as all that [`crate::Sandbox::spawn`] runs: a limit is refused there.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// What the program may do in the guest, and what it sees of it; otherwise as the
    /// VM's configuration says, or [`Privilege::confined`].
    pub fn privilege(mut self, privilege: Privilege) -> Self {
        self.privilege = Some(privilege);
        self
    }

    /// Checks everything that can be checked without a guest.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: no program, a NUL byte, a bad variable name,
    /// privileges that exclude each other, or more arguments and environment than
    /// Linux takes (2 MiB).
    pub fn validate(&self) -> Result<()> {
        self.clone().into_frame().map(drop)
    }

    /// The first frame of an exec connection.
    pub(crate) fn into_frame(self) -> Result<Vec<u8>> {
        match &self.command {
            Command::Argv(argv) if argv.first().is_none_or(|program| program.is_empty()) => {
                return Err(Error::config("command", "there is no program to run"));
            }
            Command::Argv(argv) => {
                for (index, argument) in argv.iter().enumerate() {
                    no_nul("command", argument, || format!("argument {index}"))?;
                }
            }
            Command::Shell(script) => no_nul("command", script, || "the script".to_owned())?,
        }
        for (name, value) in &self.env {
            check_variable(name, value)?;
        }
        if let Some(dir) = &self.working_dir {
            if !dir.as_bytes().starts_with(b"/") {
                let why = format!("{} is not an absolute path", dir.display());
                return Err(Error::config("working directory", why));
            }
            no_nul("working directory", dir.as_bytes(), || {
                "the path".to_owned()
            })?;
        }
        if let Some(user) = &self.user {
            if user.is_empty() {
                return Err(Error::config("user", "the name is empty"));
            }
            no_nul("user", user.as_bytes(), || "the name".to_owned())?;
        }
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(Error::config("timeout", "0 leaves no time to run"));
        }
        let start = ExecInput::Start(Box::new(self.into_request()?));
        frame::encode(&start, MAX_FRAME).map_err(|e| match e {
            frame::FrameError::TooLong { len, max } => Error::config(
                "command",
                format!("arguments and environment take {len} bytes; at most {max} fit"),
            ),
            other => other.into(),
        })
    }

    /// Refuses what takes somebody who watches the program.
    pub(crate) fn need_nobody(&self) -> Result<()> {
        if self.stdin {
            let why = "a program that nobody watches is sent no input; use `exec`";
            return Err(Error::config("stdin", why));
        }
        if self.timeout.is_some() {
            let why = "a program that nobody watches runs as long as it likes; use `exec`, \
                       or `timeout` of the guest";
            return Err(Error::config("timeout", why));
        }
        Ok(())
    }

    pub(crate) fn into_request(self) -> Result<ExecRequest> {
        let confinement = self.privilege_or_confined().confinement()?;
        let sets = |wanted: &str| self.env.iter().any(|(name, _)| name == wanted);
        let mut defaults = Vec::new();
        if !sets("PATH") {
            defaults.push(("PATH".into(), DEFAULT_PATH.into()));
        }
        if self.terminal.is_some() && !sets("TERM") {
            defaults.push(("TERM".into(), DEFAULT_TERM.into()));
        }
        let env = defaults.into_iter().chain(self.env);
        Ok(ExecRequest {
            command: self.command,
            env: env
                .map(|(name, value)| (bytes(name), bytes(value)))
                .collect(),
            working_dir: self.working_dir.map(bytes),
            make_working_dir: self.make_working_dir.unwrap_or_default(),
            user: self.user,
            stdin: self.stdin,
            terminal: self.terminal,
            linger: self.linger,
            confinement,
        })
    }

    /// Program and arguments, those of the shell for a script.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let own = |bytes: &Bytes| OsString::from_vec(bytes.to_vec());
        match &self.command {
            Command::Argv(argv) => argv.iter().map(own).collect(),
            Command::Shell(script) => vec!["/bin/sh".into(), "-c".into(), own(script)],
        }
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let variables = self.env.iter();
        variables.map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    pub(crate) fn directory(&self) -> Option<&OsStr> {
        self.working_dir.as_deref()
    }

    pub(crate) fn makes_working_dir(&self) -> bool {
        self.make_working_dir.unwrap_or_default()
    }

    /// Empty for root.
    pub(crate) fn user_or_root(&self) -> &str {
        self.user.as_deref().unwrap_or_default()
    }

    pub(crate) fn privilege_or_confined(&self) -> Privilege {
        self.privilege.clone().unwrap_or_else(Privilege::confined)
    }

    pub(crate) fn is_bare(&self) -> bool {
        self.bare
    }

    pub(crate) fn time_limit(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn wants_stdin(&self) -> bool {
        self.stdin
    }

    pub(crate) fn wants_terminal(&self) -> bool {
        self.terminal.is_some()
    }
}

fn bytes(text: OsString) -> Bytes {
    Bytes::from(text.into_vec())
}

fn no_nul(field: &'static str, bytes: &[u8], which: impl FnOnce() -> String) -> Result<()> {
    match bytes.iter().position(|b| *b == 0) {
        Some(at) => {
            let why = format!(
                "{} has a NUL byte at offset {at}, which no program can be given",
                which()
            );
            Err(Error::config(field, why))
        }
        None => Ok(()),
    }
}

fn check_variable(name: &OsStr, value: &OsStr) -> Result<()> {
    let shown = name.display();
    if name.is_empty() {
        return Err(Error::config("environment", "a variable has an empty name"));
    }
    if name.as_bytes().contains(&b'=') {
        return Err(Error::config(
            "environment",
            format!("the name {shown} contains `=`"),
        ));
    }
    no_nul("environment", name.as_bytes(), || {
        format!("the name {shown:?}")
    })?;
    no_nul("environment", value.as_bytes(), || {
        format!("the value of {shown}")
    })
}

#[cfg(test)]
mod tests {
    use flashpan_protocol::privilege::Confinement;

    use super::*;

    fn refusal(options: &ExecOptions) -> String {
        options.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_nul_is_refused_where_it_is() {
        assert_eq!(
            refusal(&ExecOptions::argv(["echo", "a\0b"])),
            "command: argument 1 has a NUL byte at offset 1, which no program can be given"
        );
        assert!(refusal(&ExecOptions::shell("a\0")).contains("the script"));
        assert!(refusal(&ExecOptions::argv(["x"]).env("A", "\0")).contains("the value of A"));
        assert!(refusal(&ExecOptions::argv(["x"]).working_dir("/\0")).contains("the path"));
        assert!(refusal(&ExecOptions::argv(["x"]).user("\0")).contains("the name"));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(refusal(&ExecOptions::argv(Vec::<&str>::new())).contains("no program"));
        assert!(refusal(&ExecOptions::argv([""])).contains("no program"));
        assert!(refusal(&ExecOptions::argv(["x"]).env("", "v")).contains("empty name"));
        assert!(refusal(&ExecOptions::argv(["x"]).env("A=B", "v")).contains("contains `=`"));
        assert!(refusal(&ExecOptions::argv(["x"]).working_dir("tmp")).contains("absolute"));
        assert!(refusal(&ExecOptions::argv(["x"]).user("")).contains("empty"));
    }

    #[test]
    fn no_time_at_all_is_refused() {
        let options = ExecOptions::argv(["x"]).timeout(Duration::ZERO);
        assert_eq!(refusal(&options), "timeout: 0 leaves no time to run");
    }

    #[test]
    fn what_linux_would_refuse_as_too_long_is_refused_here() {
        let huge = "x".repeat(MAX_FRAME);
        assert!(refusal(&ExecOptions::argv(["echo", &huge])).contains("at most"));
    }

    #[test]
    fn a_program_is_confined_unless_it_is_told_otherwise() {
        let confinement = |options: ExecOptions| {
            let frame = options.into_frame().unwrap();
            let mut decoder = frame::Decoder::new(MAX_FRAME);
            decoder.extend(&frame);
            match decoder.next_message() {
                Ok(Some(ExecInput::Start(request))) => request.confinement,
                other => panic!("{other:?}"),
            }
        };
        let plain = ExecOptions::argv(["x"]);
        assert_eq!(confinement(plain.clone()), Confinement::CONFINED);
        let privileged = plain.privilege(Privilege::privileged());
        assert_eq!(confinement(privileged), Confinement::PRIVILEGED);
        let wrong = Privilege::confined().mounts(crate::privilege::Namespace::Vm);
        assert!(refusal(&ExecOptions::argv(["x"]).privilege(wrong)).contains("privilege"));
    }

    #[test]
    fn path_and_term_have_defaults_that_can_be_replaced() {
        let size = TerminalSize {
            rows: 24,
            columns: 80,
        };
        let names = |options: ExecOptions| -> Vec<String> {
            let env = options.into_request().unwrap().env;
            env.into_iter()
                .map(|(n, _)| String::from_utf8(n.into_vec()).unwrap())
                .collect()
        };
        assert_eq!(names(ExecOptions::argv(["x"])), ["PATH"]);
        assert_eq!(
            names(ExecOptions::argv(["x"]).terminal(size)),
            ["PATH", "TERM"]
        );
        let mut with_default = ExecOptions::argv(["x"]).env("A", "set");
        with_default = with_default.default_env("A", "default");
        let values: Vec<_> = with_default
            .into_request()
            .unwrap()
            .env
            .into_iter()
            .collect();
        assert_eq!(values.last().unwrap().1, bytes("set".into()));
        assert_eq!(
            names(ExecOptions::argv(["x"]).env("PATH", "/bin")),
            ["PATH"]
        );
    }
}
