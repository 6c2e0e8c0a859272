// What the bindings of both planes' links share.
#pragma once

#include <optional>
#include <vector>

#include "bind.h"
#include "transfer.h"

namespace penstock {

using Indices = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline std::optional<std::vector<uint32_t>> to_indices(const std::optional<Indices>& indices) {
  if (!indices) return std::nullopt;
  return std::vector<uint32_t>(indices->data(), indices->data() + indices->shape(0));
}

template <typename Link>
auto make_transfer(Link& link, int operation, const Prepared& local, const Prepared& remote,
                   const std::optional<Indices>& local_indices, const std::optional<Indices>& remote_indices,
                   bool merge) {
  const auto from = to_indices(local_indices);
  const auto to = to_indices(remote_indices);
  return link.transfer(static_cast<Operation>(operation), local, remote,
                       match(local, remote, from ? &*from : nullptr, to ? &*to : nullptr, merge));
}

}  // namespace penstock
