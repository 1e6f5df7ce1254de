/* Empty on purpose: BCC's own bpf.h includes this name; the classic BPF macros are not used. */
