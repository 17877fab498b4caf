use std::io::{Read, Seek};

use proptest::prelude::*;

use super::*;

// What the kernel's build makes of `kernel()`: `cat elf | COMMAND`, and for all
// but gzip the length, four bytes.

// `gzip -n -9`, `lz4 -l -9`, `zstd -22 --ultra`, `xz --check=crc32 --x86
// --lzma2=dict=32MiB`, `bzip2 -9`, in this order.
const GZIP: &str = "\
    1f8b08000000000002039dc59112c2000000d0adb0bb82e170180ec3ae6459180e87e1201826bb0b87c3e170\
    1886619874178649b0f7053d79a7cd6e3b09c3e05faf611104755dbf7a776eddf8e2b32b973eba70ee83f7ce\
    bcf6caa9974e1c3bf2cc537fe7e31fbffdf4c377df7cf5e0de9d5b37bef8eccaa58f2e9cfbe0bd33afbd72ea\
    a513c78e3cf374fc074b59d8c400020000";

const LZ4: &str = "\
    02214c18f60000008f7f454c4602010100010025a3e8bb0f0000909090e8b3080013ab080013a30800139b08\
    0013930800138b080013830800137b080013730800136b080013630800135b080013530800134b0800134308\
    00133b080013330800132b080013230800131b080013130800130b08001303080022fb0e080013f3080013eb\
    080013e3080013db080013d3080013cb080013c3080013bb080013b3080013ab080013a30800139b08001393\
    0800138b080013830800137b080013730800136b080013630800135b080013530800134b080013430800133b\
    080013330800132b080013230800131b080013130800130b080070030e000090909000020000";

const ZSTD: &str = "\
    28b52ffd04884d0300f4047f454c4602010100e8bb0f0000909090e8b3aba39b938b837b736b635b534b433b\
    332b231b130b03fb0ef3ebe3dbd3cbc3bbb3aba39b938b837b736b635b534b433b332b231b130b030e000090\
    909037a810f0ec8c01e00f1128fcfaff7f0704d501e2516ab5647887aa9800020000";

const XZ: &str = "\
    fd377a585a0000016922de360201040021011a0001c980b3e001ff00195d003f914584683d89a6db77d7d8e9\
    3aba9d72924c4dc662be6000000000004b59d8c400013180040000001027f7323e300d8b020000000001595a\
    00020000";

const BZIP2: &str = "\
    425a6839314159265359cb088569000069fffff809880808080a080b0c080808080808880848080808080808\
    0808080848080820009484a9a900034000ffd5443434f4843f5548d00000c8d00002298b8000000000010045\
    12094af5fa6d0c58f265cd9f46aa766edfc38f2e7d7b3557e3cfab3dfcfb6fe9dcaaaaaaaaaaad55922c809c\
    e827012ba020c004ca266626898884cccc7e444513fc5dc914e142432c2215a400020000";

const SUPPORTED: [&str; 4] = [GZIP, LZ4, ZSTD, XZ];

/// Starts as ELF does, and goes on with calls of one address, so that the x86
/// filter of xz has something to do.
fn kernel() -> Vec<u8> {
    let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
    kernel.resize(64, 0);
    while kernel.len() < 512 {
        let distance = 0x1000 - (i32::try_from(kernel.len()).unwrap() + 5);
        kernel.push(0xe8);
        kernel.extend(distance.to_le_bytes());
        kernel.extend([0x90; 3]);
    }
    kernel
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A bzImage of protocol 2.08 with one setup sector and the payload 16 bytes
/// into the protected-mode code.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 16];
    let length = u32::try_from(payload.len()).unwrap();
    image[SETUP_SECTS] = 1;
    image[BOOT_FLAG..][..2].copy_from_slice(&[0x55, 0xaa]);
    image[HEADER_MAGIC..][..4].copy_from_slice(b"HdrS");
    image[VERSION..][..2].copy_from_slice(&[0x08, 0x02]);
    image[PAYLOAD_OFFSET..][..4].copy_from_slice(&16u32.to_le_bytes());
    image[PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(b"what follows the payload");
    image
}

fn open_bytes(image: &[u8]) -> Result<File, ImageProblem> {
    let mut memory = MemoryFile::new(u64::MAX).unwrap();
    assert!(memory.append(image).unwrap());
    memory.file.rewind().unwrap();
    to_elf(memory.file)
}

fn contents(mut file: File) -> Vec<u8> {
    let mut contents = Vec::new();
    file.read_to_end(&mut contents).unwrap();
    contents
}

fn refusal(image: &[u8]) -> String {
    open_bytes(image).unwrap_err().to_string()
}

fn with_length(mut payload: Vec<u8>, length: u32) -> Vec<u8> {
    payload.extend(length.to_le_bytes());
    payload
}

fn lz4_blocks(blocks: &[&[u8]]) -> Vec<u8> {
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    for block in blocks {
        let packed = lz4_flex::block::compress(block);
        payload.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        payload.extend(packed);
    }
    payload
}

fn gzip(contents: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(contents).unwrap();
    packer.finish().unwrap()
}

#[test]
fn every_compression_is_unpacked() {
    for payload in SUPPORTED {
        let elf = open_bytes(&bzimage(&bytes(payload))).unwrap();
        assert_eq!(contents(elf), kernel(), "{payload}");
    }
}

#[test]
fn the_result_can_no_longer_be_changed() {
    let mut elf = open_bytes(&bzimage(&bytes(XZ))).unwrap();
    assert!(elf.set_len(1).is_err());
    assert!(elf.set_len(1 << 20).is_err());
    assert!(elf.write_all(b"x").is_err());
}

#[test]
fn an_elf_file_is_returned_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinux");
    std::fs::write(&path, kernel()).unwrap();
    let file = open(&path).unwrap();
    let (ours, theirs) = (file.metadata().unwrap(), path.metadata().unwrap());
    use std::os::unix::fs::MetadataExt;
    assert_eq!((ours.dev(), ours.ino()), (theirs.dev(), theirs.ino()));
    assert_eq!(contents(file), kernel());
}

#[test]
fn blocks_of_lz4_follow_each_other() {
    let large = [kernel(), vec![7; (8 << 20) - 512]].concat();
    let payload = with_length(lz4_blocks(&[&large, b"end"]), (8 << 20) + 3);
    let unpacked = contents(open_bytes(&bzimage(&payload)).unwrap());
    assert_eq!(unpacked, [&large[..], b"end"].concat());
}

#[test]
fn no_setup_sectors_means_four() {
    let mut image = bzimage(&bytes(GZIP));
    image[SETUP_SECTS] = 0;
    image.splice(1024..1024, [0; 3 * 512]);
    assert_eq!(contents(open_bytes(&image).unwrap()), kernel());
}

#[test]
fn messages_name_the_file_and_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(&path, "no kernel").unwrap();
    let message = open(&path).unwrap_err().to_string();
    assert!(message.starts_with(&format!(
        "cannot open the kernel {}: it is neither",
        path.display()
    )));
    assert!(message.contains("flashpan kernel build"));

    let message = open(&directory.path().join("missing"))
        .unwrap_err()
        .to_string();
    assert!(message.contains("No such file"), "{message}");
    let message = open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("not a regular file"), "{message}");
}

#[test]
fn a_fifo_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error.problem, ImageProblem::NotAFile));
}

#[test]
fn other_compressions_are_named() {
    for (payload, name) in [
        (&bytes(BZIP2)[..], "bzip2"),
        (&[0x5d, 0, 0, 0x80, 0, 0xff, 0xff, 0xff], "lzma"),
        (b"\x89LZO\0\r\n\x1a\n", "lzo"),
    ] {
        let message = refusal(&bzimage(payload));
        assert!(
            message.contains(&format!("compressed with {name},")),
            "{message}"
        );
    }
    let message = refusal(&bzimage(b"something else"));
    assert!(message.contains("at byte 1040 is of no known"), "{message}");
}

#[test]
fn old_boot_protocols_are_refused() {
    let mut image = bzimage(&bytes(GZIP));
    image[VERSION..][..2].copy_from_slice(&[0x07, 0x02]);
    assert!(refusal(&image).contains("protocol is 2.07"));
}

#[test]
fn a_payload_beyond_the_file_is_named() {
    let mut image = bzimage(&bytes(GZIP));
    image[PAYLOAD_OFFSET..][..8].fill(0xff);
    let needed = 1024 + 2 * u64::from(u32::MAX);
    assert!(refusal(&image).contains(&format!("{needed} bytes are needed")));
}

#[test]
fn other_contents_are_refused() {
    let message = refusal(&bzimage(&gzip(b"a text")));
    assert!(message.contains("not an ELF file"), "{message}");
}

#[test]
fn too_large_a_kernel_is_refused_before_it_is_unpacked() {
    let payload = with_length(lz4_blocks(&[&kernel()]), (256 << 20) + 1);
    assert!(refusal(&bzimage(&payload)).contains("has 268435457 bytes"));
}

#[test]
fn a_bomb_is_stopped_at_the_length_it_declares() {
    let zeros = vec![0; 8 << 20];
    let lz4 = with_length(lz4_blocks(&[&zeros[..]; 4]), 1 << 20);
    assert!(refusal(&bzimage(&lz4)).contains("more than the 1048576 bytes"));
    let mut gzip = gzip(&zeros);
    let length = gzip.len() - 4;
    gzip[length..].copy_from_slice(&(1u32 << 20).to_le_bytes());
    assert!(refusal(&bzimage(&gzip)).contains("more than the 1048576 bytes"));
    for payload in [XZ, ZSTD] {
        let mut payload = bytes(payload);
        payload.truncate(payload.len() - 4);
        let message = refusal(&bzimage(&with_length(payload, 100)));
        assert!(message.contains("more than the 100 bytes"), "{message}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for payload in SUPPORTED {
        let payload = bytes(payload);
        let image = bzimage(&payload);
        for length in 0..1040 + payload.len() {
            assert!(open_bytes(&image[..length]).is_err(), "{length}");
        }
    }
}

#[test]
fn a_payload_cut_anywhere_is_refused() {
    for payload in SUPPORTED {
        let payload = bytes(payload);
        for length in 0..payload.len() {
            // Once with what was there as its length, and once with the right one.
            assert!(
                open_bytes(&bzimage(&payload[..length])).is_err(),
                "{length}"
            );
            if length + 4 < payload.len() {
                let cut = with_length(payload[..length].to_vec(), 512);
                assert!(open_bytes(&bzimage(&cut)).is_err(), "{length}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused(image in proptest::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(open_bytes(&image).is_err());
    }

    #[test]
    fn any_payload_is_refused_or_unpacked(
        kind in 0..SUPPORTED.len(),
        keep in 4..12usize,
        noise in proptest::collection::vec(any::<u8>(), 0..512),
    ) {
        let mut payload = bytes(SUPPORTED[kind]);
        payload.truncate(keep);
        payload.extend(noise);
        let _ = open_bytes(&bzimage(&with_length(payload, 4096)));
    }

    #[test]
    fn any_damage_is_refused_or_harmless(
        kind in 0..SUPPORTED.len(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut payload = bytes(SUPPORTED[kind]);
        for (at, value) in damage {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        if let Ok(elf) = open_bytes(&bzimage(&payload)) {
            prop_assert!(contents(elf).starts_with(ELF_MAGIC));
        }
    }
}
