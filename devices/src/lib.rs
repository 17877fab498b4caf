//! virtio-mmio transport and devices, without KVM.
