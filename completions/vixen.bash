# Completion of vixen for bash.

_vixen_images()
{
	vixen image list --format json 2>/dev/null | sed -n 's/.*"name": *"\([^"]*\)".*/\1/p'
}

_vixen_vms()
{
	vixen list --format json 2>/dev/null | sed -n 's/.*"name": *"\([^"]*\)".*/\1/p'
}

_vixen_run()
{
	case $prev in
	--engine) COMPREPLY=($(compgen -W 'auto soft kvm' -- "$cur")) ;;
	--cpu) COMPREPLY=($(compgen -W 'x86-64-v2 x86-64-v3 x86-64-v4 host' -- "$cur")) ;;
	--firmware) COMPREPLY=($(compgen -W 'bios uefi' -- "$cur") $(compgen -f -- "$cur")) ;;
	--net) COMPREPLY=($(compgen -W 'user none' -- "$cur")) ;;
	--console) COMPREPLY=($(compgen -W 'stdio none file:' -- "$cur")) ;;
	--kernel | --initrd | --disk | --cdrom) COMPREPLY=($(compgen -f -- "$cur")) ;;
	--name | --cpus | --memory | --append) ;;
	--format) COMPREPLY=($(compgen -W 'table json' -- "$cur")) ;;
	--gdb) COMPREPLY=($(compgen -W '1234 unix:' -- "$cur")) ;;
	*) case $cur in
	   -*) COMPREPLY=($(compgen -W '--name --engine --cpu --cpus --memory --kernel --initrd --append --firmware --disk
		--cdrom --net --console --no-reboot --gdb --counters --format --trace --perf-map --interpret --help' -- "$cur")) ;;
	   *) COMPREPLY=($(compgen -W "$(_vixen_images)" -- "$cur") $(compgen -f -- "$cur")) ;;
	   esac ;;
	esac
}

_vixen_image()
{
	case $prev in
	--format) local formats='table json'
		[ "${COMP_WORDS[2]}" = create ] && formats='ext2 ext3 ext4 xfs btrfs vfat swap'
		COMPREPLY=($(compgen -W "$formats" -- "$cur")); return ;;
	--preallocation) COMPREPLY=($(compgen -W 'off metadata falloc full' -- "$cur")); return ;;
	--partition) COMPREPLY=($(compgen -W 'gpt mbr' -- "$cur")); return ;;
	--content) COMPREPLY=($(compgen -d -- "$cur")); return ;;
	--label) return ;;
	--arch) COMPREPLY=($(compgen -W 'amd64 i386' -- "$cur")); return ;;
	--iter-time) return ;;
	--encrypt) COMPREPLY=($(compgen -W 'luks1 luks2' -- "$cur")); return ;;
	--key-file* | --new-key-file | --backing-key-file) COMPREPLY=($(compgen -f -- "$cur")); return ;;
	--name | --kernel-package | --size | --include | --mirror | --cluster-size | --sparse | --parallel) return ;;
	--export | --description | --listen) return ;;
	--from | --to | --disk-format | --format-a | --format-b | --backing-format)
		COMPREPLY=($(compgen -W 'raw qcow2 luks vmdk vhdx vdi' -- "$cur")); return ;;
	--at) COMPREPLY=($(compgen -f -- "$cur")); return ;;
	--subformat) COMPREPLY=($(compgen -W 'monolithicSparse streamOptimized dynamic fixed' -- "$cur")); return ;;
	--compression) COMPREPLY=($(compgen -W 'zlib zstd' -- "$cur")); return ;;
	--repair) COMPREPLY=($(compgen -W 'leaks all' -- "$cur")); return ;;
	--tls-certificates) COMPREPLY=($(compgen -d -- "$cur")); return ;;
	--backing | --socket | --tls-psk-file) COMPREPLY=($(compgen -f -- "$cur")); return ;;
	esac
	if [ "$COMP_CWORD" = 2 ]; then
		COMPREPLY=($(compgen -W 'build create list info clone convert restore compare map resize check snapshot bitmap commit rebase
			serve key partitions --help' -- "$cur"))
		return
	fi
	if [ "${COMP_WORDS[2]}" = key ] && [ "$COMP_CWORD" = 3 ]; then
		COMPREPLY=($(compgen -W 'add remove change' -- "$cur"))
		return
	fi
	if [ "${COMP_WORDS[2]}" = snapshot ] && [ "$COMP_CWORD" = 3 ]; then
		COMPREPLY=($(compgen -W 'create list apply delete' -- "$cur"))
		return
	fi
	if [ "${COMP_WORDS[2]}" = bitmap ] && [ "$COMP_CWORD" = 3 ]; then
		COMPREPLY=($(compgen -W 'add remove clear merge list' -- "$cur"))
		return
	fi
	_vixen_image_options
}

_vixen_image_options()
{
	local options
	case ${COMP_WORDS[2]} in
	build) COMPREPLY=($(compgen -W 'debian-12 --name --arch --kernel-package --size --include --mirror --force
		--help' -- "$cur")) ;;
	create) COMPREPLY=($(compgen -W '--disk-format --subformat --backing --backing-format --cluster-size --compression --extended-l2
		--lazy-refcounts --refcount-bits --data-file --preallocation --partition --format --label --content
		--encrypt --key-file --iter-time --force --help' -- "$cur") $(compgen -f -- "$cur")) ;;
	list) COMPREPLY=($(compgen -W '--format --help' -- "$cur")) ;;
	*) case ${COMP_WORDS[2]} in
	   info | map) options='--disk-format --format' ;;
	   clone) options='--size --disk-format' ;;
	   convert) options='--from --to --resume --subformat --compress --compression --cluster-size --encrypt --key-file --new-key-file --iter-time --plain --sparse
		--parallel --force' ;;
	   restore) options='--at --to --live --no-verify --encrypt --key-file --new-key-file --plain --disk-format --resume --force --format' ;;
	   compare) options='--format-a --format-b --key-file-a --key-file-b --format' ;;
	   resize) options='--shrink --key-file --disk-format' ;;
	   check) options='--repair --disk-format --format' ;;
	   snapshot) options='--disk-format --format' ;;
	   bitmap) options='--granularity --disk-format --format' ;;
	   partitions) options='--disk-format --key-file --format' ;;
	   key) options='--key-file --new-key-file --iter-time --disk-format' ;;
	   commit) options='--disk-format --key-file --plain' ;;
	   serve) options='--key-file --socket --listen --export --description --bitmap --read-only --once --disk-format --tls-certificates
		--tls-verify-clients --tls-psk-file' ;;
	   rebase) options='--backing --backing-format --backing-key-file --key-file --no-backing --unsafe --disk-format' ;;
	   esac
	   case $cur in
	   -*) COMPREPLY=($(compgen -W "$options --help" -- "$cur")) ;;
	   *) COMPREPLY=($(compgen -W "$(_vixen_images)" -- "$cur") $(compgen -f -- "$cur")) ;;
	   esac ;;
	esac
}

_vixen_disk()
{
	local options= encrypt='--encrypt --key-file --iter-time --plain'
	if [ "$COMP_CWORD" = 2 ]; then
		COMPREPLY=($(compgen -W 'attach detach list throttle backup bitmap cancel commit complete mirror resize
			snapshot stream --help' -- "$cur"))
		return
	fi
	case ${COMP_WORDS[2]} in
	detach) options='--timeout --help' ;;
	list) options='--format --help' ;;
	throttle) options='--iops --bps --iops-burst --bps-burst --group --rate --help' ;;
	backup) options="--background --bitmap --incremental --backing --to --rate $encrypt --help" ;;
	mirror) options="--background --pivot --follow --to --rate $encrypt --help" ;;
	snapshot) options="--internal $encrypt --help" ;;
	bitmap) options='--granularity --help' ;;
	resize) options='--shrink --force --help' ;;
	stream) options='--background --plain --rate --help' ;;
	commit) options='--background --base --plain --rate --help' ;;
	esac
	case $prev in
	--to) COMPREPLY=($(compgen -W 'raw qcow2' -- "$cur")); return ;;
	--encrypt) COMPREPLY=($(compgen -W 'luks1 luks2' -- "$cur")); return ;;
	--key-file | --base) COMPREPLY=($(compgen -f -- "$cur")); return ;;
	--format) COMPREPLY=($(compgen -W 'table json' -- "$cur")); return ;;
	--timeout | --iops | --bps | --iops-burst | --bps-burst | --group | --rate) return ;;
	esac
	case $cur in
	-*) COMPREPLY=($(compgen -W "${options:---help}" -- "$cur")) ;;
	*) COMPREPLY=($(compgen -W "${options:---help} $(_vixen_vms)" -- "$cur") $(compgen -f -- "$cur")) ;;
	esac
}

_vixen()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	COMPREPLY=()
	if [ "$COMP_CWORD" = 1 ]; then
		COMPREPLY=($(compgen -W 'run list status stop pause resume disk image doctor help version --help' -- "$cur"))
		return
	fi
	case ${COMP_WORDS[1]} in
	run) _vixen_run ;;
	image) _vixen_image ;;
	doctor) [ "$prev" = --format ] && COMPREPLY=($(compgen -W 'table json' -- "$cur")) ||
		COMPREPLY=($(compgen -W '--format --help' -- "$cur")) ;;
	list) [ "$prev" = --format ] && COMPREPLY=($(compgen -W 'table json' -- "$cur")) ||
		COMPREPLY=($(compgen -W '--format --help' -- "$cur")) ;;
	status) [ "$prev" = --format ] && COMPREPLY=($(compgen -W 'table json' -- "$cur")) ||
		COMPREPLY=($(compgen -W "--format --help $(_vixen_vms)" -- "$cur")) ;;
	stop) [ "$prev" = --timeout ] || COMPREPLY=($(compgen -W "--now --timeout --help $(_vixen_vms)" -- "$cur")) ;;
	disk) _vixen_disk ;;
	pause | resume) COMPREPLY=($(compgen -W "--help $(_vixen_vms)" -- "$cur")) ;;
	help) COMPREPLY=($(compgen -W 'run list status stop pause resume disk image doctor version' -- "$cur")) ;;
	esac
}
complete -o filenames -F _vixen vixen
