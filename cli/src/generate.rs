//! What is generated from the command line's own description: completion
//! scripts and manual pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Cli;
use crate::failure::{Failure, print};

pub(crate) const COMPLETION_EXAMPLES: &str = "\
Examples:
  flashpan completion bash > ~/.local/share/bash-completion/completions/flashpan
  flashpan completion zsh > \"${fpath[1]}/_flashpan\"
  flashpan completion fish > ~/.config/fish/completions/flashpan.fish";

const COMPLETE_EXAMPLES: &str = "\
Examples:
  flashpan __complete      ids and names of VMs, for completion scripts";

pub(crate) const MAN_EXAMPLES: &str = "\
Examples:
  flashpan man ~/.local/share/man/man1
  man flashpan-run";

/// Prints a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETION_EXAMPLES)]
pub(crate) struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

/// Writes the manual pages to a directory
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// The directory; it is made if need be.
    directory: PathBuf,
}

/// Prints ids and names of VMs, one a line
#[derive(Debug, Args)]
#[command(after_help = COMPLETE_EXAMPLES)]
pub(crate) struct CompleteArgs {}

/// Runs `flashpan __complete`.
pub(crate) fn complete(_args: &CompleteArgs) -> Result<u8, Failure> {
    let mut words = crate::vms::names()?.join("\n");
    if !words.is_empty() {
        words.push('\n');
    }
    print(&words)?;
    Ok(0)
}

pub(crate) fn completion(args: &CompletionArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(), "flashpan", &mut script);
    print(&with_vms(args.shell, &String::from_utf8_lossy(&script)))?;
    Ok(0)
}

/// The command line without what is hidden, which scripts of some shells would offer.
fn visible() -> clap::Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|sub| !sub.is_hide_set());
    let shown: Vec<_> = shown.cloned().collect();
    clap::Command::new("flashpan")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .subcommands(shown)
}

/// The script with what VMs there are when the user asks, where the shell's scripts can
/// be added to.
fn with_vms(shell: Shell, script: &str) -> String {
    let commands = commands_for_vms().join(" ");
    match shell {
        Shell::Bash => format!(
            r#"{script}
_flashpan_copied() {{
    local IFS=$'\n' cur=$1 vms
    vms=$(flashpan __complete 2>/dev/null | sed 's/$/:/')
    COMPREPLY=( $(compgen -W "$vms" -- "$cur") )
    if [[ ${{#COMPREPLY[@]}} -eq 0 ]]; then return 1; fi
    COMPREPLY+=( $(compgen -f -- "$cur") )
    compopt -o nospace 2>/dev/null
    return 0
}}
_flashpan_or_vm() {{
    local commands=" {commands} " cur=${{COMP_WORDS[COMP_CWORD]}}
    if [[ ${{COMP_CWORD}} -ge 2 && $commands == *" ${{COMP_WORDS[1]}} "* && $cur != -* ]]; then
        COMPREPLY=( $(compgen -W "$(flashpan __complete 2>/dev/null)" -- "$cur") )
        if [[ ${{#COMPREPLY[@]}} -gt 0 ]]; then return 0; fi
    fi
    if [[ ${{COMP_CWORD}} -ge 2 && ${{COMP_WORDS[1]}} == cp && $cur != -* ]]; then
        if _flashpan_copied "$cur"; then return 0; fi
    fi
    _flashpan "$@"
}}
complete -F _flashpan_or_vm -o bashdefault -o default flashpan
"#
        ),
        Shell::Fish => format!(
            "{script}complete -c flashpan -n \"__fish_seen_subcommand_from {commands}\" -f \
             -a \"(flashpan __complete 2>/dev/null)\"\n\
             complete -c flashpan -n \"__fish_flashpan_using_subcommand cp\" \
             -a \"(flashpan __complete 2>/dev/null | sed 's/\\$/:/')\"\n"
        ),
        Shell::Zsh => {
            let lines = script.lines().map(|line| {
                let of_vms = line.starts_with("':vm -- ") || line.starts_with("'*::vms -- ");
                let copied = line.starts_with("':source -- ") || line.starts_with("':place -- ");
                match line.strip_suffix(":_default' \\") {
                    Some(line) if of_vms => format!("{line}:_flashpan_vms' \\\n"),
                    Some(line) if copied => format!("{line}:_flashpan_copied' \\\n"),
                    _ => format!("{line}\n"),
                }
            });
            let lines: String = lines.collect();
            let vms = "_flashpan_vms() {\n    \
                       compadd -- ${(f)\"$(flashpan __complete 2>/dev/null)\"}\n}\n\
                       _flashpan_copied() {\n    \
                       compadd -S '' -- ${(f)\"$(flashpan __complete 2>/dev/null | sed 's/$/:/')\"}\n    \
                       _files\n}\n";
            match lines.split_once('\n') {
                Some((first, rest)) => format!("{first}\n\n{vms}{rest}"),
                None => lines,
            }
        }
        _ => script.to_owned(),
    }
}

/// Commands whose arguments are VMs.
fn commands_for_vms() -> Vec<String> {
    let command = Cli::command();
    let takes_vms = |command: &&clap::Command| {
        let mut positionals = command.get_positionals();
        positionals.any(|argument| matches!(argument.get_id().as_str(), "vm" | "vms"))
    };
    let names = command.get_subcommands().filter(takes_vms).flat_map(|sub| {
        let aliases = sub.get_visible_aliases();
        std::iter::once(sub.get_name())
            .chain(aliases)
            .map(str::to_owned)
    });
    names.collect()
}

pub(crate) fn man(args: &ManArgs) -> Result<u8, Failure> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|e| {
            Failure::new(format!(
                "cannot write manual pages to {}: {e}",
                directory.display()
            ))
        })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a VM is asked for, by this name of a command and by its others.
    fn mentions(command: &clap::Command) -> usize {
        let of = |sub: &clap::Command| {
            let is_vm = |argument: &clap::Arg| ["vm", "vms"].contains(&argument.get_id().as_str());
            let own = usize::from(sub.get_positionals().any(is_vm));
            own * (1 + sub.get_visible_aliases().count()) + mentions(sub)
        };
        command.get_subcommands().map(of).sum()
    }

    #[test]
    fn scripts_ask_for_vms_where_vms_are_meant() {
        let commands = commands_for_vms();
        for command in ["exec", "stop", "rm", "remove", "logs", "top", "rename"] {
            assert!(commands.iter().any(|name| name == command), "{command}");
        }
        assert!(!commands.iter().any(|name| name == "run"));
        let script = |shell| {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(), "flashpan", &mut script);
            with_vms(shell, &String::from_utf8(script).unwrap())
        };
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            // What scripts call is not what they offer.
            let offers = script.replace("flashpan __complete", "");
            assert!(!offers.contains("supervise") && !offers.contains("__complete"));
            assert!(offers.contains("port-forward") && offers.contains("version"));
        }
        let zsh = script(Shell::Zsh);
        assert_eq!(
            zsh.matches(":_flashpan_vms' ").count(),
            // Without aliases, which have no part of their own in the script.
            mentions(&Cli::command()),
        );
        // Both sides of `cp`.
        assert_eq!(zsh.matches(":_flashpan_copied' ").count(), 2);
        assert!(zsh.starts_with("#compdef flashpan\n"));
        assert!(script(Shell::Fish).contains("(flashpan __complete 2>/dev/null)"));
    }

    #[test]
    fn every_command_gets_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs {
            directory: dir.path().join("man1"),
        })
        .unwrap();
        for page in [
            "flashpan.1",
            "flashpan-run.1",
            "flashpan-kernel-build.1",
            "flashpan-bench-boot.1",
        ] {
            let text = std::fs::read_to_string(dir.path().join("man1").join(page));
            assert!(text.is_ok_and(|text| text.starts_with(".ie")), "{page}");
        }
    }
}
