// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! The digest of captured instructions: kind, value, address and registers of each, in order.
//!
//! It tells machines that ran alike from others, as the VMM's digest of exits does; it is no defence against
//! somebody who looks for collisions.

use super::instruction::Instruction;
use super::trap::RSP;

/// Odd, with as many ones as zeros in each byte pair: any such numbers do.
const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

/// Mixes two words in: a 128-bit product folded onto itself, of operands that depend on all that came before. The words
/// are added once more, so that each counts also where the other makes its operand zero.
const fn mix(digest: u64, one: u64, two: u64) -> u64 {
    let product = (digest ^ one ^ FACTORS[0]) as u128 * (digest.rotate_left(32) ^ two ^ FACTORS[1]) as u128;
    (product as u64) ^ ((product >> 64) as u64) ^ one.rotate_left(17).wrapping_add(two)
}

/// Folds one captured instruction, before it is executed, and the value that it is going to read into the digest of
/// those before it. RSP is left out, which VMX does not keep with the other registers; RIP stands in its place.
#[must_use]
pub fn fold(digest: u64, instruction: &Instruction<'_>, value: u64) -> u64 {
    let mut digest = mix(digest, instruction.word(), value);
    let (pairs, _) = instruction.registers.as_chunks::<2>();
    for (number, [one, two]) in pairs.iter().enumerate() {
        digest = mix(digest, if number == RSP / 2 { instruction.rip } else { *one }, *two);
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::super::trap::{Registers, Trap};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn fold(before: u64, trap: Trap, value: u64, rip: u64, registers: &Registers) -> u64 {
        operand(before, (trap, 0, 0), value, rip, registers)
    }

    fn operand(before: u64, what: (Trap, u8, u8), value: u64, rip: u64, registers: &Registers) -> u64 {
        let ((trap, destination, size), mut registers, flags) = (what, *registers, &mut 0);
        let registers = &mut registers;
        super::fold(before, &Instruction { trap, rip, destination, size, flags, registers }, value)
    }

    #[test]
    fn destination_and_size_count() {
        let mut seen = HashSet::new();
        for destination in 0..16 {
            for size in [2, 4, 8] {
                assert!(seen.insert(operand(0, (Trap::Rdrand, destination, size), 1, 2, &[0; 16])));
            }
        }
    }

    #[test]
    fn small_changes_make_other_digests() {
        let mut seen = HashSet::new();
        for trap in Trap::ALL {
            for value in 0..64 {
                for rip in 0..64 {
                    assert!(seen.insert(fold(0, trap, value, rip, &[0; 16])));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_register_and_the_order_count(
            before: u64, value: u64, rip: u64, registers: [u64; 16], at in 0usize..16, flip in 1u64..,
        ) {
            let one = fold(before, Trap::Rdtsc, value, rip, &registers);
            let mut other = registers;
            other[at] ^= flip;
            prop_assert_eq!(one != fold(before, Trap::Rdtsc, value, rip, &other), at != RSP);
            prop_assert_ne!(one, fold(before, Trap::Rdtscp, value, rip, &registers));
            prop_assert_ne!(one, fold(before, Trap::Rdtsc, value ^ flip, rip, &registers));
            let ab = fold(one, Trap::Rdtsc, value ^ flip, rip, &registers);
            let ba = fold(fold(before, Trap::Rdtsc, value ^ flip, rip, &registers), Trap::Rdtsc, value, rip, &registers);
            prop_assert_ne!(ab, ba);
        }
    }
}
