//! Is a program static, and for x86-64?

/// Offsets and values of the System V ABI's ELF-64 structures.
const HEADER_LEN: usize = 64;
const EM_X86_64: u16 = 62;
const PT_INTERP: u32 = 3;

/// Checks that `program` needs no dynamic loader; the error completes the
/// sentence "… is …".
pub(super) fn check_static(program: &[u8]) -> Result<(), &'static str> {
    let header = program.get(..HEADER_LEN).ok_or("no program")?;
    // Magic, 64 bits, little-endian.
    if !header.starts_with(b"\x7fELF\x02\x01") || u16_at(program, 18) != Some(EM_X86_64) {
        return Err("no program for x86-64");
    }
    let (Some(offset), Some(entry_len), Some(count)) = (
        u64_at(program, 32),
        u16_at(program, 54),
        u16_at(program, 56),
    ) else {
        return Err("no program");
    };
    let mut at = usize::try_from(offset).map_err(|_| "damaged")?;
    if count == 0 {
        return Err("no program");
    }
    for _ in 0..count {
        match u32_at(program, at) {
            Some(PT_INTERP) => return Err("dynamically linked"),
            Some(_) => {}
            None => return Err("damaged"),
        }
        at = at.saturating_add(entry_len.into());
    }
    Ok(())
}

fn bytes_at<const N: usize>(program: &[u8], offset: usize) -> Option<[u8; N]> {
    program.get(offset..)?.first_chunk().copied()
}

fn u16_at(program: &[u8], offset: usize) -> Option<u16> {
    bytes_at(program, offset).map(u16::from_le_bytes)
}

fn u32_at(program: &[u8], offset: usize) -> Option<u32> {
    bytes_at(program, offset).map(u32::from_le_bytes)
}

fn u64_at(program: &[u8], offset: usize) -> Option<u64> {
    bytes_at(program, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header and one program header of type `kind`.
    fn program(kind: u32) -> Vec<u8> {
        let mut program = vec![0; HEADER_LEN + 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        program[18] = 62;
        program[32] = 64;
        program[54] = 56;
        program[56] = 1;
        program[64..68].copy_from_slice(&kind.to_le_bytes());
        program
    }

    #[test]
    fn only_a_static_x86_64_program_passes() {
        const PT_LOAD: u32 = 1;
        let good = program(PT_LOAD);
        assert_eq!(check_static(&good), Ok(()));
        assert_eq!(check_static(&program(PT_INTERP)), Err("dynamically linked"));
        for (offset, value) in [
            (0, 0),
            (4, 1),
            (5, 2),
            (18, 183),
            (56, 0),
            (57, 1),
            (39, 0xff),
        ] {
            let mut bad = good.clone();
            bad[offset] = value;
            check_static(&bad).unwrap_err();
        }
        for length in 0..68 {
            check_static(&good[..length]).unwrap_err();
        }
        check_static(b"#!/bin/sh\necho a script of more than sixty-four bytes, no program\n")
            .unwrap_err();
    }
}
