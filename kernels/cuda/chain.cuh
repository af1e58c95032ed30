// How a kernel starts before the one ahead of it has ended (programmatic dependent launch): its
// blocks are placed while the other's finish, and it may bring what no kernel writes, such as
// weights.
#pragma once

// What the kernels before this one wrote may be read, and written, from here on. Every kernel calls
// it, in every block that writes: so whoever has waited knows that all before are done. The next
// kernel is let in first, and may be followed by more: what they read before their own wait is
// written by no kernel at all, such as weights and a step's index data.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The same for a kernel that waits for other ranks: the next one's blocks would take the places that
// those ranks' kernels need to get here, where they share a device.
__device__ inline void wait_for_previous_alone() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
