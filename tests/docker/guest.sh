# Runs in the guest, as root, by run.sh. Ends with `docker: all works`, or with
# status 1 and dockerd's log.
set -eu

say() { echo "docker: $*"; }
fail() {
    say "FAILED: $*"
    cat /tmp/dockerd.log
    exit 1
}
# expect WHAT WANTED COMMAND…: the command's output has WANTED in it.
expect() {
    what=$1 wanted=$2
    shift 2
    got=$("$@" 2>&1) || fail "$what: status $?: $got"
    case $got in
    *"$wanted"*) say "$what: ok" ;;
    *) fail "$what: no \`$wanted\` in: $got" ;;
    esac
}

# Docker's layers are overlays, which do not stack on the overlay that is our
# root.
mkdir -p /var/lib/docker
mount -t tmpfs -o size=75% tmpfs /var/lib/docker

mkfifo /tmp/dockerd
dockerd --storage-driver overlay2 >/tmp/dockerd 2>&1 &
exec 3</tmp/dockerd
# Returns when it listens, or when it has ended.
sed '/API listen on/q' <&3 >/tmp/dockerd.log
grep -q 'API listen on' /tmp/dockerd.log || fail 'dockerd does not start'
cat <&3 >>/tmp/dockerd.log &
say 'dockerd is up'
docker info 2>&1 | grep -iE 'driver|cgroup|warning|kernel' || true

# An image of one static program, without any registry.
mkdir -p /tmp/root/bin /tmp/root/tmp
cp /bin/busybox /tmp/root/bin/
for name in sh cat nc httpd uname id ip mkdir; do
    ln -s busybox "/tmp/root/bin/$name"
done
tar -C /tmp/root -c . | docker import - box >/dev/null
say 'image imported'

expect 'a container runs' flashpan docker run --rm box uname -r
expect 'it is isolated' 'uid=0' docker run --rm --network none --read-only --cap-drop ALL box id
expect 'limit of memory' 33554432 docker run --rm -m 32m box cat /sys/fs/cgroup/memory.max
expect 'limit of CPU' '50000 100000' docker run --rm --cpus 0.5 box cat /sys/fs/cgroup/cpu.max
expect 'limit of processes' 20 docker run --rm --pids-limit 20 box cat /sys/fs/cgroup/pids.max
expect 'weight of the disk' 'default' docker run --rm --blkio-weight 500 box cat /sys/fs/cgroup/io.weight
expect 'devices are refused' 'not permitted' \
    docker run --rm --cap-add MKNOD box sh -c 'busybox mknod /tmp/d b 254 0; cat /tmp/d 2>&1 || true'

serve='mkdir /www && echo hello from a container >/www/index.html && exec httpd -f -v -p 80 -h /www'
docker run -d --name web -p 8080:80 box sh -c "$serve" >/dev/null
address=$(docker inspect -f '{{.NetworkSettings.IPAddress}}' web)
# Not by wget: Debian's static busybox crashes in that, everywhere.
get="printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 20"
expect 'the bridge' 'hello from' sh -c "$get $address 80"
expect 'a published port' 'hello from' sh -c "$get 127.0.0.1 8080"
expect 'a published port from another container' 'hello from' \
    docker run --rm box sh -c "$get 172.17.0.1 8080"

docker network create --driver bridge other >/dev/null
docker run -d --name named --network other box sh -c "$serve" >/dev/null
expect 'names in a network' 'hello from' \
    docker run --rm --network other box sh -c "$get named 80"
expect 'networks are apart' 'apart' \
    docker run --rm box sh -c "nc -w 3 $(docker inspect -f \
        '{{.NetworkSettings.Networks.other.IPAddress}}' named) 80 </dev/null || echo apart"
for driver in macvlan ipvlan; do
    expect "a $driver network" eth0 sh -c \
        "docker network create --driver $driver $driver >/dev/null &&
         docker run --rm --network $driver box ip address"
done
expect 'a private IPv6 network' 'fd00:1::' sh -c \
    'docker network create --ipv6 --subnet fd00:1::/64 six >/dev/null &&
     docker run --rm --network six box ip address'

# A swarm of one: VXLAN between containers, IPVS in front of services.
docker swarm init --advertise-addr 172.17.0.1 >/dev/null
expect 'an overlay network' eth0 sh -c \
    'docker network create --driver overlay --attachable over >/dev/null &&
     docker run --rm --network over box ip address'

# The three ways to write rules.
expect 'iptables' DOCKER iptables -t nat -S
expect 'nftables' DOCKER nft list ruleset
expect 'old iptables' ACCEPT iptables-legacy -S

docker stop -t 1 web named >/dev/null
expect 'nothing is left' '0' sh -c 'docker ps -q | wc -l'
say 'all works'
