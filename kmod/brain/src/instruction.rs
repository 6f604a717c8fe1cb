// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! One captured instruction that a guest stands at, and what it does to the guest's registers.

use super::trap::{RAX, RCX, RDX, Registers, Trap};

/// RFLAGS.CF.
pub const CARRY: u64 = 1;
/// RFLAGS.CF, PF, AF, ZF, SF and OF.
pub const STATUS: u64 = 0x8d5;

/// A captured instruction, not executed yet.
#[derive(Debug)]
pub struct Instruction<'a> {
    /// Which.
    pub trap: Trap,
    /// Where it lies.
    pub rip: u64,
    /// RDRAND, RDSEED: number of the register that gets the value; else 0.
    pub destination: u8,
    /// RDRAND, RDSEED: bytes of the value, 2, 4 or 8; else 0.
    pub size: u8,
    /// RFLAGS. Only RDRAND and RDSEED change them; may be anything for others.
    pub flags: &'a mut u64,
    /// The general registers. RSP may be stale unless it is the destination.
    pub registers: &'a mut Registers,
}

impl Instruction<'_> {
    /// The bits of a value that there is room for.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        match self.size {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    /// The instruction in one word, for the digest.
    #[must_use]
    pub const fn word(&self) -> u64 {
        self.trap.number() as u64 | (self.destination as u64) << 8 | (self.size as u64) << 16
    }

    /// Executes it: it reads `value`, and RDTSCP `aux` besides.
    ///
    /// SDM volume 2B, RDTSC, RDTSCP, RDPMC; RDRAND and RDSEED (and volume 1, 7.3.17): a 16-bit destination keeps
    /// its upper bits, a 32-bit one is extended with zeros; CF says that there was a value, the other status flags
    /// are cleared.
    pub fn execute(&mut self, value: u64, aux: u64) {
        if self.trap.is_random() {
            let mask = self.mask();
            if let Some(register) = self.registers.get_mut(usize::from(self.destination)) {
                let kept = if self.size == 2 { *register & !0xffff } else { 0 };
                *register = kept | value & mask;
            }
            *self.flags = *self.flags & !STATUS | CARRY;
            return;
        }
        self.registers[RAX] = value & 0xffff_ffff;
        self.registers[RDX] = value >> 32;
        if self.trap == Trap::Rdtscp {
            self.registers[RCX] = aux & 0xffff_ffff;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn execute(trap: Trap, destination: u8, size: u8, value: u64, flags: u64) -> (Registers, u64) {
        let (mut registers, mut flags) = ([u64::MAX; 16], flags);
        let registers_at = &mut registers;
        Instruction { trap, rip: 0, destination, size, flags: &mut flags, registers: registers_at }
            .execute(value, 0x1_0000_0007);
        (registers, flags)
    }

    #[test]
    fn counters_go_to_edx_and_eax_and_leave_the_flags_alone() {
        let (registers, flags) = execute(Trap::Rdtscp, 0, 0, 0x1_2345_6789_abcd, 0x246);
        assert_eq!((registers[RAX], registers[RDX], registers[RCX]), (0x6789_abcd, 0x12345, 7));
        assert_eq!(flags, 0x246);
        assert_eq!(execute(Trap::Rdpmc, 0, 0, 0, 0).0[RCX], u64::MAX);
    }

    #[test]
    fn random_values_fill_their_register_as_its_size_wants() {
        const VALUE: u64 = 0x1122_3344_5566_7788;
        for trap in [Trap::Rdrand, Trap::Rdseed] {
            for (size, wanted) in [(2, 0xffff_ffff_ffff_7788), (4, 0x5566_7788), (8, VALUE)] {
                for destination in 0..16 {
                    let (registers, flags) = execute(trap, destination, size, VALUE, 0xad7);
                    for (number, register) in registers.iter().enumerate() {
                        let changed = number == usize::from(destination);
                        assert_eq!(*register, if changed { wanted } else { u64::MAX }, "register {number}");
                    }
                    assert_eq!(flags, 0x203, "IF and the bit that is always one stay, CF is set");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_exit_information_can_do_harm(trap in 0u8..5, destination: u8, size: u8, value: u64, flags: u64) {
            let (_, after) = execute(Trap::of(trap).unwrap(), destination, size, value, flags);
            prop_assert_eq!(after & !STATUS, flags & !STATUS);
        }
    }
}
