//! `flashpan events`.

use std::collections::HashMap;

use clap::Args;
use flashpan::NetworkActivity;
use flashpan::Sandbox;
use flashpan::api::shell_quote_args;
use flashpan::state::{EventReader, LoggedEvent, LoggedKind, Vm, Vms};
use flashpan::{SecretActivity, SecretState};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::failure::{Failure, plain, say};
use crate::format::{Row, Template, json, render};
use crate::parse;
use crate::runtime;
use crate::vms::find;
use crate::vms::logs::Out;

const EXAMPLES: &str = "\
Examples:
  flashpan events                       what happened in all VMs that there are
  flashpan events -f                    and what happens, also in new ones
  flashpan events -f --tail 0 web       from now on, until it ends
  flashpan events --format '{{.VM}}: {{.What}}'
  flashpan events --json web | jq -r 'select(.type == \"exec\") | .exec.command'

Every start and end of a program that somebody runs in a VM (not of those that it starts
itself) is an event, every connection, request and question for a name of its guest, and
everything that a VM does: starting, running, paused, stopping, stopped. Types are vm,
exec_started, exec, network and lost. A VM keeps the last 8 to 16 MiB of those of its
network, and as much of all others, until it is removed. What programs are called is what the guest says. Fields of --format: Time, VM,
Type, What; {{json .}} for all.";

/// Events that wait to be written; whoever has more waits.
const WAITING: usize = 256;

/// Shows what happened in VMs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EventsArgs {
    /// Ids, their beginnings, or names; otherwise all VMs.
    #[arg(value_name = "VM")]
    vms: Vec<String>,

    /// Go on as more happens: until all VMs that are named have ended, or for ever.
    #[arg(long, short)]
    follow: bool,

    /// Of each VM only the last N of what is there.
    #[arg(long, short = 'n', value_name = "N", value_parser = parse::count,
          allow_negative_numbers = true)]
    tail: Option<usize>,

    /// As JSON, one a line.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Each by a template, e.g. '{{.Time}} {{.What}}'.
    #[arg(long, value_name = "TEMPLATE", value_parser = template)]
    format: Option<Template>,
}

/// Events come one by one, so nobody knows how wide a column has to be.
fn template(text: &str) -> Result<Template, String> {
    if text == "table" || text.starts_with("table ") {
        return Err("events have no table; leave `table` out".to_owned());
    }
    let template: Template = text.parse()?;
    // A field that there is not is known before there is an event.
    match render::<LoggedEvent>(&[], &template) {
        Ok(_) => Ok(template),
        Err(failure) => Err(failure.message().to_owned()),
    }
}

impl Row for LoggedEvent {
    const FIELDS: &'static [(&'static str, &'static str)] = &[
        ("Time", "TIME"),
        ("VM", "VM"),
        ("Type", "TYPE"),
        ("What", "WHAT"),
    ];

    fn values(&self) -> Vec<String> {
        let kind = match &self.kind {
            LoggedKind::Vm { .. } => "vm",
            LoggedKind::ExecStarted { .. } => "exec_started",
            LoggedKind::Exec { .. } => "exec",
            LoggedKind::Network { .. } => "network",
            LoggedKind::Secret(_) => "secret",
            LoggedKind::Lost { .. } => "lost",
            _ => "",
        };
        vec![
            self.time.to_string(),
            self.vm.clone(),
            kind.to_owned(),
            plain(&what(self)),
        ]
    }
}

/// Runs `flashpan events`.
pub(crate) fn events(args: &EventsArgs) -> Result<u8, Failure> {
    let vms = args.vms.iter().map(|text| find(text));
    let named: Vec<Vm> = vms.collect::<Result<_, _>>()?;
    runtime(async {
        let mut out = Out::new()?;
        match (args.follow, named.is_empty()) {
            (false, true) => args.there(&all()?, &mut out),
            (false, false) => args.there(&named, &mut out),
            (true, true) => args.follow_all(&mut out).await,
            (true, false) => args.follow_named(named, &mut out).await,
        }
    })?;
    Ok(0)
}

fn all() -> Result<Vec<Vm>, Failure> {
    let listing = Vms::user()
        .and_then(|vms| vms.list())
        .map_err(Failure::new)?;
    for (id, error) in &listing.damaged {
        say("warning", &format!("the VM {id} is left out: {error}"));
    }
    Ok(listing.vms)
}

/// The events of a VM; `None` if it was removed meanwhile.
fn open(vm: &Vm, tail: Option<usize>) -> Result<Option<EventReader>, Failure> {
    match EventReader::open(vm, tail) {
        Ok(reader) => Ok(Some(reader)),
        Err(_) if !vm.directory().exists() => Ok(None),
        Err(error) => Err(Failure::new(error)),
    }
}

impl EventsArgs {
    /// What there is, by time.
    fn there(&self, vms: &[Vm], out: &mut Out) -> Result<(), Failure> {
        let mut events = Vec::new();
        for vm in vms {
            let Some(mut reader) = open(vm, self.tail)? else {
                continue;
            };
            // And not those that have come since it was opened.
            for _ in 0..self.tail.unwrap_or(usize::MAX) {
                match reader.available().map_err(Failure::new)? {
                    Some(event) => events.push(event),
                    None => break,
                }
            }
        }
        events.sort_by_key(|event| event.time);
        events.iter().try_for_each(|event| self.show(event, out))
    }

    async fn follow_named(&self, vms: Vec<Vm>, out: &mut Out) -> Result<(), Failure> {
        let (sender, events) = mpsc::channel(WAITING);
        let mut followers = JoinSet::new();
        for vm in vms {
            if let Some(reader) = open(&vm, self.tail)? {
                followers.spawn(follow(reader, ended(vm, sender.clone()), sender.clone()));
            }
        }
        drop(sender);
        self.show_all(events, out).await
    }

    async fn follow_all(&self, out: &mut Out) -> Result<(), Failure> {
        let vms = Vms::user().map_err(Failure::new)?;
        let mut watch = vms.watch().map_err(Failure::new)?;
        let (sender, mut events) = mpsc::channel(WAITING);
        let mut followers = JoinSet::new();
        // The VMs that there are, each with what ends its follower when it is dropped.
        let mut known = HashMap::new();
        let mut tail = self.tail;
        loop {
            let there = all()?;
            known.retain(|id, _| there.iter().any(|vm| vm.id() == id));
            for vm in there {
                if known.contains_key(vm.id()) {
                    continue;
                }
                if let Some(reader) = open(&vm, tail)? {
                    let (alive, gone) = oneshot::channel::<()>();
                    known.insert(vm.id().to_owned(), alive);
                    // Until it is removed, however often it ends and starts again.
                    let removed = async { drop(gone.await) };
                    followers.spawn(follow(reader, removed, sender.clone()));
                }
            }
            // All of what is new is new.
            tail = None;
            loop {
                tokio::select! {
                    changed = watch.changed() => {
                        changed.map_err(Failure::new)?;
                        break;
                    }
                    Some(event) = events.recv() => self.show(&event?, out)?,
                }
            }
        }
    }

    async fn show_all(
        &self,
        mut events: mpsc::Receiver<Result<LoggedEvent, Failure>>,
        out: &mut Out,
    ) -> Result<(), Failure> {
        while let Some(event) = events.recv().await {
            self.show(&event?, out)?;
        }
        Ok(())
    }

    fn show(&self, event: &LoggedEvent, out: &mut Out) -> Result<(), Failure> {
        let line = match &self.format {
            Some(template) => render(std::slice::from_ref(event), template)?,
            None if self.json => format!("{}\n", json(event)?),
            None => format!("{} {} {}\n", event.time, event.vm, plain(&what(event))),
        };
        out.write(line.as_bytes())
    }
}

type Sink = mpsc::Sender<Result<LoggedEvent, Failure>>;

/// Tells the events of a VM until that is over.
async fn follow(mut reader: EventReader, over: impl Future<Output = ()>, sink: Sink) {
    let mut over = std::pin::pin!(over);
    let mut is_over = false;
    loop {
        // What there was when it was over as well.
        if !drain(&mut reader, &sink).await || is_over {
            return;
        }
        tokio::select! {
            changed = reader.changed() => if let Err(error) = changed {
                let _ = sink.send(Err(Failure::new(error))).await;
                return;
            },
            () = &mut over => is_over = true,
        }
    }
}

/// Returns when a VM has ended.
async fn ended(vm: Vm, sink: Sink) {
    if !vm.status().is_alive() {
        return;
    }
    match Sandbox::attach(&vm).await {
        Ok(sandbox) => drop(sandbox.wait().await),
        // It has ended since.
        Err(flashpan::Error::NotRunning) => {}
        Err(error) => drop(sink.send(Err(error.into())).await),
    }
}

/// Tells what is there; `false` if nobody wants more.
async fn drain(reader: &mut EventReader, sink: &Sink) -> bool {
    loop {
        let event = match reader.available() {
            Ok(Some(event)) => Ok(event),
            Ok(None) => return true,
            Err(error) => Err(Failure::new(error)),
        };
        let failed = event.is_err();
        if sink.send(event).await.is_err() || failed {
            return false;
        }
    }
}

/// What happened, in words, some of them the guest's.
fn what(event: &LoggedEvent) -> String {
    match &event.kind {
        LoggedKind::Vm {
            status,
            message: None,
        } => status.to_string(),
        LoggedKind::Vm {
            status,
            message: Some(message),
        } => format!("{status}: {message}"),
        LoggedKind::ExecStarted {
            pid,
            argv,
            truncated,
            uid,
            ..
        } => {
            let more = if *truncated { " …" } else { "" };
            let what = match pid {
                0 => format!("exec not started (uid {uid})"),
                pid => format!("exec started (pid {pid}, uid {uid})"),
            };
            format!("{what}: {}{more}", shell_quote_args(argv))
        }
        LoggedKind::Exec {
            exec,
            pid,
            signal,
            duration_ms,
            ..
        } => {
            let how = match signal {
                Some(signal) => format!("by signal {signal}"),
                None => format!("with {}", exec.exit_code),
            };
            format!(
                "exec ended {how} after {duration_ms} ms (pid {pid}): {}",
                exec.command
            )
        }
        LoggedKind::Network { activity, .. } => of_network(activity),
        LoggedKind::Secret(activity) => of_secret(activity),
        LoggedKind::Lost { count, network } => {
            let of = if *network { " of the network" } else { "" };
            format!("at least {count} events{of} are missing")
        }
        _ => "something that this version does not know".to_owned(),
    }
}

/// What became of a secret.
fn of_secret(activity: &SecretActivity) -> String {
    let name = &activity.secret;
    match (activity.state, &activity.why) {
        (SecretState::Refreshed, _) => format!("secret {name} has another value"),
        (SecretState::Followed, _) => format!("secret {name} follows its source again"),
        (SecretState::Set, _) => format!("secret {name} was given a value"),
        (SecretState::Revoked, _) => format!("secret {name} was revoked"),
        (_, Some(why)) => format!("secret {name} keeps its value: {why}"),
        (_, None) => format!("secret {name} keeps its value"),
    }
}

/// What became of a connection, request or question.
fn of_network(activity: &NetworkActivity) -> String {
    let of = &activity.network;
    let what = match (of.method.as_str(), of.url.as_str()) {
        ("", "") => of.host.clone(),
        (method, "") => format!("{method} {}", of.host),
        (method, url) => format!("{method} {url}"),
    };
    let how = match (of.blocked, &activity.code) {
        (true, Some(code)) => format!("refused: {code}"),
        (false, Some(code)) => format!("failed: {code}"),
        (_, None) if of.status_code != 0 => format!("{}", of.status_code),
        (_, None) => "allowed".to_owned(),
    };
    let by = match (&activity.rule, &activity.hint) {
        (Some(rule), _) => format!(" ({rule})"),
        (None, Some(hint)) => format!(" ({hint})"),
        (None, None) => String::new(),
    };
    let scheme = &activity.scheme;
    let (sent, received, time) = (of.request_bytes, of.response_bytes, of.duration_ms);
    let mut line = format!("{scheme} {what} {how}{by}");
    if !of.blocked {
        line.push_str(&format!(
            "; {sent} bytes sent, {received} received, {time} ms"
        ));
    }
    for (names, what) in [
        (&activity.secrets_substituted, "put in"),
        (&activity.secrets_missed, "not put in"),
        (&activity.secrets_leaked, "not for this host"),
    ] {
        if !names.is_empty() {
            line.push_str(&format!("; secret {} {what}", names.join(", ")));
        }
    }
    line
}
