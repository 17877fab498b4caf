//! KVM, guest memory, boot protocol, vCPUs, event loop, control socket.
