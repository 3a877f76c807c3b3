#!/usr/bin/env bash
# Shows three hosts join one overlay on one machine. Each host and each container is a network namespace.
#
#   demo.sh               build it, show it, remove it; KEEP=1 leaves it standing
#   demo.sh down [NAME]   remove the demo of that name, or all that were left standing
#
# Needs root. FLANNELD names the daemon's binary. Nothing here touches the network of the machine itself.
set -euo pipefail

hosts=3
etcd_prefix=/kube-centos/network
config='{"Network":"172.30.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}'
endpoint=http://172.31.0.254:2379

name=fd$$
address=()
dir_of() { printf '%s/flannel-demo-%s' "${TMPDIR:-/tmp}" "$1"; }
dir=$(dir_of "$name")

# Telling

bold='' plain=''
[[ -t 1 ]] && bold=$'\e[1m' plain=$'\e[0m'
heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
indent() { sed 's/[[:space:]]*$//; s/^/   /'; }
die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

# Doing

# Runs a command in a namespace of this demo; the process keeps its id.
inside() {
  local namespace=$1
  shift
  nsenter --net="/run/netns/$name-$namespace" -- "$@"
}
etcdctl_inside() { ETCDCTL_API=3 inside u etcdctl --endpoints="$endpoint" "$@"; }

# Starts a command in a namespace, in the background and out of reach of Ctrl-C; its log and its process id have files.
launch() {
  local namespace=$1 log=$2
  shift 2
  setsid nsenter --net="/run/netns/$name-$namespace" -- "$@" >"$dir/$log.log" 2>&1 </dev/null 3>&- 4>&- &
  echo "$! $name-$namespace" >"$dir/$log.pid"
}

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
  local what=$1 tries=0
  shift
  until "$@" >/dev/null 2>&1; do
    ((++tries <= 400)) || die "not within 20 s: $what"
    sleep 0.05
  done
}

build_underlay() {
  mkdir "$dir"
  ip netns add "$name-u"
  ip -n "$name-u" link set lo up
  ip -n "$name-u" link add br0 type bridge
  ip -n "$name-u" addr add 172.31.0.254/24 dev br0
  ip -n "$name-u" link set br0 up
}

build_host() {
  local i=$1 host=$name-h$1
  mkdir "$dir/h$i"
  ip netns add "$host"
  ip -n "$host" link set lo up
  ip -n "$host" link add eth0 type veth peer name "p$i" netns "$name-u"
  ip -n "$name-u" link set "p$i" master br0 up
  ip -n "$host" addr add "172.31.0.$i/24" dev eth0
  ip -n "$host" link set eth0 up
  ip -n "$host" route add default via 172.31.0.254
  # shellcheck disable=SC2016
  inside "h$i" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}

start_etcd() {
  launch u etcd etcd --name demo --data-dir "$dir/etcd" --unsafe-no-fsync \
    --listen-client-urls "$endpoint" --advertise-client-urls "$endpoint" \
    --heartbeat-interval 10 --election-timeout 100 --logger zap --log-outputs stderr --log-level warn
  wait_for "etcd is healthy" etcdctl_inside endpoint health
}

flags_of() {
  local run=$dir/h$1
  printf '%s\n' "--etcd-endpoints=$endpoint" "--etcd-prefix=$etcd_prefix" --iface=eth0 \
    "--subnet-file=$run/subnet.env" "--docker-opts-file=$run/docker_opts.env" "--state-dir=$run/state"
}

start_flanneld() {
  local flags
  mapfile -t flags < <(flags_of "$1")
  launch "h$1" "flanneld-h$1" "$flanneld" "${flags[@]}"
}

has_joined() {
  local i=$1 entries
  [[ -s $dir/h$i/subnet.env && -s $dir/h$i/docker_opts.env ]] || return
  entries=$(ip -n "$name-h$i" route show dev flannel.1 | wc -l)
  ((entries == hosts - 1))
}

has_ended() { ! kill -0 "$(cut -d ' ' -f 1 <"$dir/flanneld-h$1.pid")"; }

join_or_end() { has_joined "$1" || has_ended "$1"; }

# What dockerd would do with docker_opts.env, and then a container.
attach_container() {
  local i=$1 host=$name-h$1 container=$name-c$1
  # shellcheck source=/dev/null
  source "$dir/h$i/docker_opts.env"
  local bip=${DOCKER_OPT_BIP#--bip=} mtu=${DOCKER_OPT_MTU#--mtu=}
  local gateway=${bip%/*}
  address[i]=${gateway%.*}.2
  ip -n "$host" link add docker0 type bridge
  ip -n "$host" addr add "$bip" dev docker0
  ip -n "$host" link set docker0 mtu "$mtu" up
  ip netns add "$container"
  ip -n "$container" link set lo up
  ip -n "$container" link add eth0 mtu "$mtu" type veth peer name veth1 mtu "$mtu" netns "$host"
  ip -n "$host" link set veth1 master docker0 up
  ip -n "$container" addr add "${address[i]}/${bip#*/}" dev eth0
  ip -n "$container" link set eth0 up
  ip -n "$container" route add default via "$gateway"
}

# Showing

show_leases() {
  etcdctl_inside get --prefix "$etcd_prefix/" | indent
}

show_host() {
  local i=$1 host=$name-h$1
  heading "Host $i: what the daemon wrote"
  say "subnet.env"
  indent <"$dir/h$i/subnet.env" | indent
  say "docker_opts.env"
  indent <"$dir/h$i/docker_opts.env" | indent
  heading "Host $i: the device"
  ip -n "$host" -d link show dev flannel.1 | sed -E 's/ +(numtxqueues|gso_max|tso_max|gro_max|addrgenmode).*//' | indent
  ip -n "$host" -4 -brief addr show dev flannel.1 | indent
  heading "Host $i: the three tables, one entry in each for every other host"
  say "routes:     where a subnet is"
  ip -n "$host" -4 route show dev flannel.1 | indent | indent
  say "neighbours: the MAC address of its gateway"
  ip -n "$host" -4 neigh show dev flannel.1 | indent | indent
  say "FDB:        the host that has this MAC address"
  bridge -n "$host" fdb show dev flannel.1 | indent | indent
}

# ping_once FROM TO SIZE: the round trip in milliseconds, of a packet of SIZE bytes that nobody may fragment.
ping_once() {
  inside "c$1" ping -n -c 1 -W 2 -M 'do' -s "$(($3 - 28))" "${address[$2]}" | sed -n 's/.*time=\([0-9.]*\).*/\1/p'
}

show_pings() {
  local size=$1 from to time
  printf '   %-16s' "from \\ to"
  for ((to = 1; to <= hosts; to++)); do printf '%-16s' "${address[to]}"; done
  echo
  for ((from = 1; from <= hosts; from++)); do
    printf '   %-16s' "${address[from]}"
    for ((to = 1; to <= hosts; to++)); do
      if ((from == to)); then
        printf '%-16s' -
      elif time=$(ping_once "$from" "$to" "$size") && [[ $time ]]; then
        printf '%-16s' "$time ms"
      else
        printf '%-16s' "LOST"
        lost=$((lost + 1))
      fi
    done
    echo
  done
}

show_too_big() {
  local size=$1
  if ping_once 1 2 "$size" >/dev/null 2>&1; then
    die "a packet of $size bytes passed: the MTU is not what it says"
  fi
  say "one byte more ($size) is refused by the container's own kernel, as it should be"
}

# Removing

# Ends a process if it still is the one in that namespace.
end_process() {
  local pid=$1 namespace=$2 tries=0
  [[ $(ip netns identify "$pid" 2>/dev/null) == "$namespace" ]] || return 0
  kill "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    ((++tries <= 50)) || kill -9 "$pid" 2>/dev/null || break
    sleep 0.05
  done
}

down() {
  local name=$1 dir pid namespace file
  dir=$(dir_of "$name")
  for file in "$dir"/flanneld-*.pid "$dir"/etcd.pid; do
    [[ -e $file ]] || continue
    read -r pid namespace <"$file"
    end_process "$pid" "$namespace"
  done
  for file in /run/netns/"$name"-*; do
    [[ -e $file ]] && ip netns del "${file##*/}"
  done
  rm -rf "$dir"
}

down_one() {
  [[ $1 =~ ^fd[0-9]+$ && -d $(dir_of "$1") ]] || die "no demo named $1"
  down "$1"
  echo "demo $1 is removed"
}

down_all() {
  local dir
  for dir in "$(dir_of fd)"*; do
    [[ -d $dir ]] && down_one "${dir##*-}"
  done
}

finish() {
  local status=$? log
  trap - EXIT
  trap '' INT TERM
  # A signal may come while the output of a command is being thrown away.
  exec >&3 2>&4
  if ((status == 130 || status == 143)); then
    printf '\ndemo: interrupted\n' >&2
  elif ((status != 0)); then
    for log in "$dir"/*.log; do
      [[ -e $log ]] && { heading "The log of $(basename "$log" .log)" && tail -n 40 "$log"; } >&2
    done
    printf '\ndemo: FAILED\n' >&2
  elif [[ ${KEEP:-} ]]; then
    heading "Left standing, as you asked"
    say "ip netns list                                the hosts are $name-h1 to $name-h$hosts, the containers $name-c1 to $name-c$hosts"
    say "ip netns exec $name-c1 ping ${address[2]}"
    say "ip netns exec $name-h1 ip route"
    say "tail -f $dir/flanneld-h1.log"
    say "Remove it: $0 down $name"
    return
  fi
  down "$name"
  exit "$status"
}

main() {
  local i flags lost=0
  flanneld=$(realpath -e "${FLANNELD:-target/debug/flanneld}") || die "no flanneld there: make build"
  exec 3>&1 4>&2
  trap finish EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM

  heading "An underlay network with an etcd on it, and $hosts hosts"
  build_underlay
  for ((i = 1; i <= hosts; i++)); do build_host "$i"; done
  start_etcd
  etcdctl_inside put "$etcd_prefix/config" "$config" >/dev/null
  say "etcdctl put $etcd_prefix/config '$config'"

  heading "One flanneld on each host"
  local start=${EPOCHREALTIME//[.,]/}
  for ((i = 1; i <= hosts; i++)); do start_flanneld "$i"; done
  mapfile -t flags < <(flags_of 1)
  say "$(basename "$flanneld") ${flags[*]}"
  for ((i = 1; i <= hosts; i++)); do
    wait_for "host $i has joined" join_or_end "$i"
    has_joined "$i" || die "flanneld on host $i ended"
  done
  say "all have joined within $(((${EPOCHREALTIME//[.,]/} - start) / 1000)) ms"

  heading "What etcd knows"
  show_leases
  show_host 1

  heading "A container on each host, each on a docker0 made from docker_opts.env; all ping all"
  for ((i = 1; i <= hosts; i++)); do attach_container "$i"; done
  show_pings 84

  heading "The same with packets of full size, 1450 bytes, which nobody may fragment"
  show_pings 1450
  show_too_big 1451
  ((lost == 0)) || die "$lost pings were lost"

  heading "It works"
}

((EUID == 0)) || die "needs root: hosts are network namespaces"
case ${1:-up} in
  up) main ;;
  down) if [[ ${2:-} ]]; then down_one "$2"; else down_all; fi ;;
  *) die "usage: demo.sh [down [NAME]]" ;;
esac
