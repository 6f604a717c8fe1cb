//! How long an instruction is that reads the TSC: all that a VMM needs of a decoder to step over it.

/// The longest instruction, in bytes.
pub(super) const LONGEST: usize = 15;

/// Bytes of the RDTSC or RDTSCP that `bytes` begin with, its prefixes included. `None`: it is neither, or cut off.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let prefixes = bytes.iter().take(LONGEST).take_while(|byte| is_prefix(**byte)).count();
    let opcode = match bytes.get(prefixes..)? {
        [0x0f, 0x31, ..] => 2,
        [0x0f, 0x01, 0xf9, ..] => 3,
        _ => return None,
    };
    Some(prefixes + opcode).filter(|length| *length <= LONGEST)
}

/// Operand and address size, segments, repetition (SDM volume 2A, 2.1.1), and REX in 64-bit code (2.2.1). With LOCK it
/// would have been #UD.
const fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf2 | 0xf3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_count_and_other_instructions_are_none() {
        assert_eq!(length(&[0x0f, 0x31, 0x90]), Some(2));
        assert_eq!(length(&[0x0f, 0x01, 0xf9]), Some(3));
        assert_eq!(length(&[0x2e, 0x66, 0x48, 0x0f, 0x31]), Some(5));
        assert_eq!(length(&[[0x66; 13].as_slice(), &[0x0f, 0x31]].concat()), Some(15));
        assert_eq!(length(&[[0x66; 14].as_slice(), &[0x0f, 0x31]].concat()), None);
        assert_eq!(length(&[0x66, 0x0f]), None);
        assert_eq!(length(&[0x0f, 0xa2]), None);
        assert_eq!(length(&[]), None);
    }
}
