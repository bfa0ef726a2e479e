//! Assembles a small eBPF program: instruction-set.rst of the kernel's documentation.

use std::os::fd::{AsRawFd, BorrowedFd};

use aya_obj::generated::{
    BPF_ADD, BPF_ALU, BPF_ALU64, BPF_CALL, BPF_DW, BPF_EXIT, BPF_IMM, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K,
    BPF_LD, BPF_LDX, BPF_MEM, BPF_MOD, BPF_MOV, BPF_MUL, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE, BPF_STX,
    BPF_W, BPF_X, bpf_insn,
};

/// The registers in use. `R0` holds results. `R1` to `R5` hold arguments of calls, which destroy them. Calls preserve
/// `R6` to `R9`. `R10` is the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    R10,
}

/// The second operand of an instruction.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operand {
    /// A register.
    R(Register),
    /// A constant.
    K(i32),
}

/// The operation of a 64-bit arithmetic instruction.
#[derive(Debug, Clone, Copy)]
pub(super) enum Alu {
    Mov,
    Add,
    Mul,
}

/// The condition of a jump: unsigned 64-bit comparisons.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition {
    Equal,
    AtLeast,
}

/// A target of jumps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label(usize);

/// A program under construction. Jumps refer to labels; [`Assembler::finish`] fills in the distances.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    instructions: Vec<bpf_insn>,
    /// The position of each label that was placed.
    labels: Vec<Option<usize>>,
    /// The instructions that jump to a label.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// Creates a label, to be placed later.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places `label` before the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    /// `register = register op operand`, in 64 bits; `Mov` copies the operand.
    pub(super) fn alu(&mut self, op: Alu, register: Register, operand: Operand) {
        let op = match op {
            Alu::Mov => BPF_MOV,
            Alu::Add => BPF_ADD,
            Alu::Mul => BPF_MUL,
        };
        self.with_operand(BPF_ALU64 | op, register, operand);
    }

    /// `register = operand`.
    pub(super) fn mov(&mut self, register: Register, operand: Operand) {
        self.alu(Alu::Mov, register, operand);
    }

    /// `register = register % divisor`, unsigned and in 32 bits.
    pub(super) fn remainder(&mut self, register: Register, divisor: Register) {
        self.with_operand(BPF_ALU | BPF_MOD, register, Operand::R(divisor));
    }

    /// `register = *(u32 *)(address + offset)`.
    pub(super) fn load(&mut self, register: Register, address: Register, offset: i16) {
        self.push(BPF_LDX | BPF_MEM | BPF_W, register, address as u8, offset, 0);
    }

    /// `register = *(u64 *)(address + offset)`.
    pub(super) fn load_long(&mut self, register: Register, address: Register, offset: i16) {
        self.push(BPF_LDX | BPF_MEM | BPF_DW, register, address as u8, offset, 0);
    }

    /// `*(u32 *)(address + offset) = register`.
    pub(super) fn store(&mut self, address: Register, offset: i16, register: Register) {
        self.push(BPF_STX | BPF_MEM | BPF_W, address, register as u8, offset, 0);
    }

    /// `register = map`, in the form that helpers take.
    pub(super) fn load_map(&mut self, register: Register, map: BorrowedFd<'_>) {
        self.load_wide(register, BPF_PSEUDO_MAP_FD, map);
    }

    /// `register = &value`, for an array with one entry.
    pub(super) fn load_map_value(&mut self, register: Register, map: BorrowedFd<'_>) {
        self.load_wide(register, BPF_PSEUDO_MAP_VALUE, map);
    }

    /// `r0 = helper(r1, r2, r3, r4, r5)`; `helper` is a `BPF_FUNC_…`.
    pub(super) fn call(&mut self, helper: u32) {
        self.push(BPF_JMP | BPF_CALL, Register::R0, 0, 0, helper.cast_signed());
    }

    /// Jumps to `label` if the condition holds for register and operand.
    pub(super) fn jump_if(
        &mut self,
        condition: Condition,
        register: Register,
        operand: Operand,
        label: Label,
    ) {
        let condition = match condition {
            Condition::Equal => BPF_JEQ,
            Condition::AtLeast => BPF_JGE,
        };
        self.jumps.push((self.instructions.len(), label));
        self.with_operand(BPF_JMP | condition, register, operand);
    }

    /// Ends the program with `r0` as its result.
    pub(super) fn exit(&mut self) {
        self.push(BPF_JMP | BPF_EXIT, Register::R0, 0, 0, 0);
    }

    /// Returns the program. A jump to a label that was not placed leads to itself, and the kernel rejects it.
    pub(super) fn finish(mut self) -> Vec<bpf_insn> {
        for (jump, label) in self.jumps {
            let to = self.labels[label.0].unwrap_or(jump);
            // Distances are relative to the instruction after the jump, and shorter than 200 instructions.
            let distance = to.cast_signed() - jump.cast_signed() - 1;
            self.instructions[jump].off = i16::try_from(distance).unwrap_or(-1);
        }
        self.instructions
    }

    fn with_operand(&mut self, code: u32, register: Register, operand: Operand) {
        match operand {
            Operand::R(source) => self.push(code | BPF_X, register, source as u8, 0, 0),
            Operand::K(constant) => self.push(code | BPF_K, register, 0, 0, constant),
        }
    }

    /// Loads a 64-bit constant, which takes two instructions. The kernel replaces a descriptor with an address.
    fn load_wide(&mut self, register: Register, pseudo: u32, map: BorrowedFd<'_>) {
        let kind = u8::try_from(pseudo).unwrap_or(0);
        self.push(BPF_LD | BPF_DW | BPF_IMM, register, kind, 0, map.as_raw_fd());
        self.push(0, Register::R0, 0, 0, 0);
    }

    fn push(&mut self, code: u32, destination: Register, source: u8, offset: i16, constant: i32) {
        self.instructions.push(bpf_insn {
            code: u8::try_from(code).unwrap_or(0),
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(destination as u8, source),
            off: offset,
            imm: constant,
        });
    }
}
