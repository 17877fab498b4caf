//! A whole life of a machine in the jail: built, run, paused, saved, asked for
//! its counters, resumed, ended. The jail cannot be left, so that this is done in
//! a process of its own: the test started again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::exit)]

use std::process::Command as Program;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use flashpan_protocol::control::ExitReason;
use flashpan_tests::payload::{COUNT, parts};
use flashpan_vmm::jail::{self, Stage};
use flashpan_vmm::state::{MachineStateError, VmState};
use flashpan_vmm::{Command, Host, Observer, Vm, VmEvent, VmHandle};

/// Says to the test that it is the jailed one.
const JAILED: &str = "FLASHPAN_TEST_JAILED";

type Answer = Result<Box<VmState>, MachineStateError>;

/// Leads the machine through its life, from its own threads: there are no
/// others in the jail.
#[derive(Default)]
struct Leader {
    vm: OnceLock<VmHandle>,
    answers: Mutex<Option<(Sender<Answer>, Receiver<Answer>)>>,
}

impl Observer for Leader {
    fn event(&self, event: VmEvent) {
        let Some(vm) = self.vm.get() else { return };
        let mut answers = self.answers.lock().unwrap();
        match event {
            VmEvent::UserPhase { .. } if answers.is_none() => {
                *answers = Some(channel());
                vm.send(Command::Pause);
            }
            VmEvent::Paused => {
                let (reply, _) = answers.as_ref().unwrap();
                vm.send(Command::Save(reply.clone()));
                vm.send(Command::Stats);
            }
            VmEvent::Stats(stats) => {
                assert!(stats.vmm_resident_kib > 0);
                let (_, answer) = answers.as_ref().unwrap();
                answer.try_recv().unwrap().unwrap();
                vm.send(Command::Resume);
            }
            VmEvent::Resumed => vm.send(Command::End(ExitReason::Killed)),
            _ => {}
        }
    }
}

fn live_in_the_jail() -> ! {
    let host = Host::open().unwrap();
    let (spec, resources) = parts(COUNT, 2, true);
    let leader = Arc::new(Leader::default());
    jail::enter(Stage::Building).unwrap();
    let mut vm = Vm::boot(host, &spec, resources, leader.clone()).unwrap();
    // A machine may be restored before it runs.
    let state = vm.save().unwrap();
    vm.restore(&state).unwrap();
    leader.vm.set(vm.handle().unwrap()).unwrap();
    jail::enter(Stage::Running).unwrap();
    assert_eq!(vm.run().reason, ExitReason::Killed);
    std::process::exit(77);
}

#[test]
fn a_machine_lives_its_whole_life_in_the_jail() {
    const NAME: &str = "a_machine_lives_its_whole_life_in_the_jail";
    if std::env::var_os(JAILED).is_some() {
        live_in_the_jail();
    }
    let mut program = Program::new(std::env::current_exe().unwrap());
    program
        .args([NAME, "--exact", "--test-threads=1", "--nocapture"])
        .env(JAILED, "1");
    let output = program.output().unwrap();
    assert_eq!(output.status.code(), Some(77), "{output:?}");
}
