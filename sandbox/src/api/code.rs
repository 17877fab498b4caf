//! Numbers and names by which a client tells errors apart.

use std::fmt;

/// The error numbers of the JSON-RPC interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum RpcCode {
    /// The line is not JSON, or no request.
    Parse = -32700,
    /// The request lacks what every request has.
    InvalidRequest = -32600,
    /// There is no such method.
    MethodNotFound = -32601,
    /// The parameters are not what the method takes.
    InvalidParams = -32602,
    /// A defect of the server.
    Internal = -32603,
    /// The VM could not be made, is not there or has failed.
    Vm = -32000,
    /// A program could not be run.
    Exec = -32001,
    /// A file could not be read, written or listed.
    File = -32002,
    /// The request was cancelled.
    Cancelled = -32003,
}

impl RpcCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $rpc:ident;)+) => {
        /// What kind of error it is, by a name that does not change between
        /// versions. Messages may change; programs go by these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)+
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The number of a JSON-RPC answer that reports it.
            #[must_use]
            pub const fn rpc_code(self) -> RpcCode {
                match self {
                    $(Self::$variant => RpcCode::$rpc,)+
                }
            }
        }
    };
}

error_codes! {
    /// A port of the host cannot be listened on, or one of the guest not reached.
    ForwardFailed = "forward_failed", Vm;
    /// The VM stands still, or does not where it should.
    VmPaused = "vm_paused", Vm;
    /// What is on disk of VMs cannot be read or written, or is not understood.
    VmState = "vm_state", Vm;
    /// A configuration is not JSON or TOML at all.
    ConfigSyntax = "config_syntax", InvalidParams;
    /// A field of a configuration holds the wrong type of value.
    ConfigField = "config_field", InvalidParams;
    /// A configuration is longer than is read.
    ConfigTooLong = "config_too_long", InvalidParams;
    /// A configuration contradicts itself or has values out of range.
    ConfigInvalid = "config_invalid", InvalidParams;
    /// A request names no image.
    ImageRequired = "image_required", InvalidParams;
    /// A request sets the VM's id.
    IdGiven = "id_given", InvalidParams;
    /// A secret names no `@hosts`.
    SecretHostsMissing = "secret_hosts_missing", InvalidParams;
    /// A secret has nothing after its `@`.
    SecretHostsEmpty = "secret_hosts_empty", InvalidParams;
    /// A secret has no name.
    SecretNameEmpty = "secret_name_empty", InvalidParams;
    /// The variable that should hold a secret is not set.
    SecretNotSet = "secret_not_set", InvalidParams;
    /// A variable has no name.
    EnvNameEmpty = "env_name_empty", InvalidParams;
    /// A variable's name cannot be one.
    EnvNameInvalid = "env_name_invalid", InvalidParams;
    /// A variable's value cannot be one.
    EnvValueInvalid = "env_value_invalid", InvalidParams;
    /// A variable of the host is not set.
    EnvNotSet = "env_not_set", InvalidParams;
    /// A file of variables cannot be read.
    EnvFileUnreadable = "env_file_unreadable", InvalidParams;
    /// A line of a file of variables is wrong.
    EnvFileLine = "env_file_line", InvalidParams;
    /// A volume is not `host:guest[:option]`.
    VolumeFormat = "volume_format", InvalidParams;
    /// A volume's option is unknown.
    VolumeOption = "volume_option", InvalidParams;
    /// A volume's host path is not there.
    HostPathNotFound = "host_path_not_found", InvalidParams;
    /// A volume's host path cannot be looked at or made absolute.
    HostPathUnusable = "host_path_unusable", InvalidParams;
    /// A path in the guest has characters that are not allowed.
    GuestPathInvalid = "guest_path_invalid", InvalidParams;
    /// A path in the guest is relative.
    GuestPathNotAbsolute = "guest_path_not_absolute", InvalidParams;
    /// A path in the guest is not in the workspace.
    GuestPathOutside = "guest_path_outside_workspace", InvalidParams;
    /// A port forward is not `[LOCAL_PORT:]REMOTE_PORT`.
    PortForwardFormat = "port_forward_format", InvalidParams;
    /// A port is not a number from 1 to 65535.
    PortInvalid = "port_invalid", InvalidParams;
    /// A host entry is not `host:ip`.
    AddHostFormat = "add_host_format", InvalidParams;
    /// The name of a host entry cannot be one.
    AddHostName = "add_host_name", InvalidParams;
    /// The address of a host entry is none.
    AddHostIp = "add_host_ip", InvalidParams;
    /// A configuration asks for what this version does not have.
    Unsupported = "unsupported", InvalidParams;
    /// There is no VM of this id or name.
    VmNotFound = "vm_not_found", Vm;
    /// The ids of several VMs begin so.
    VmAmbiguous = "vm_ambiguous", Vm;
    /// No VM can have this name.
    VmNameInvalid = "vm_name_invalid", InvalidParams;
    /// Another VM has this name.
    VmNameTaken = "vm_name_taken", Vm;
    /// The VM runs, and should not.
    VmRunning = "vm_running", Vm;
    /// The VM does not run (any more).
    VmNotRunning = "vm_not_running", Vm;
    /// The VM ended before the operation was complete.
    VmEnded = "vm_ended", Vm;
    /// A time limit was reached.
    Timeout = "timeout", Vm;
    /// A kernel cannot be booted.
    KernelUnusable = "kernel_unusable", Vm;
    /// An image is not there, cannot be pulled or is for another platform.
    ImageUnusable = "image_unusable", Vm;
    /// A root file system cannot be used.
    RootUnusable = "root_unusable", Vm;
    /// A disk or volume is not there, in use or damaged, or cannot be made.
    DiskUnusable = "disk_unusable", Vm;
    /// A file that a VM needs cannot be opened.
    FileUnusable = "file_unusable", Vm;
    /// The VM could not be built, or its guest did not come up.
    BootFailed = "boot_failed", Vm;
    /// Programs of flashpan are missing, do not run, or do not belong together.
    Installation = "installation", Vm;
    /// The host refused something that should always work.
    Host = "host", Internal;
    /// The guest's agent is gone, busy or breaks the protocol.
    Agent = "agent", Vm;
    /// Neither the image nor the caller names a program.
    CommandMissing = "command_missing", InvalidParams;
    /// The guest has no such program.
    CommandNotFound = "command_not_found", Exec;
    /// The guest cannot execute the program.
    CommandNotExecutable = "command_not_executable", Exec;
    /// The guest could not start the program for another reason.
    CommandNotStarted = "command_not_started", Exec;
    /// A program wrote more than the caller takes.
    OutputTooLong = "output_too_long", Exec;
    /// The guest has no such file.
    FileNotFound = "file_not_found", File;
    /// An operation on a file of the guest failed.
    FileFailed = "file_failed", File;
    /// A file or directory of the guest is longer than the caller takes.
    FileTooLong = "file_too_long", File;
    /// The network's rules do not allow a request.
    Blocked = "blocked", Vm;
    /// A host is not among those that the guest may reach.
    HostNotAllowed = "host_not_allowed", Vm;
    /// A secret's placeholder was on its way to a host that may not have the secret.
    SecretLeak = "secret_leak", Vm;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let names: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn numbers_are_those_of_the_interface() {
        assert_eq!(ErrorCode::ConfigInvalid.rpc_code().number(), -32602);
        assert_eq!(RpcCode::Vm.number(), -32000);
        assert_eq!(RpcCode::Exec.number(), -32001);
        assert_eq!(RpcCode::File.number(), -32002);
        assert_eq!(RpcCode::Cancelled.number(), -32003);
    }
}
