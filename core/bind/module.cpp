#include "bind.h"

namespace {

// The one table from the core's codes to the classes of penstock.errors.
const char* class_name(penstock::ErrorCode code) {
  using penstock::ErrorCode;
  switch (code) {
    case ErrorCode::invalid_argument: return "ConfigError";
    case ErrorCode::unit_too_large: return "UnitTooLarge";
    case ErrorCode::deadline_exceeded: return "DeadlineExceeded";
    case ErrorCode::closed: return "ClosedError";
    case ErrorCode::out_of_memory: return "BudgetError";
    case ErrorCode::bad_manifest: return "ManifestError";
    case ErrorCode::not_registered: return "NotRegistered";
    case ErrorCode::stale_descriptor: return "StaleDescriptor";
    case ErrorCode::transfer_active: return "TransferActive";
    case ErrorCode::peer_unreachable: return "PeerUnreachable";
    case ErrorCode::peer_refused: return "PeerRefused";
    case ErrorCode::peer_lost: return "PeerLost";
    case ErrorCode::transport_unavailable: return "TransportUnavailable";
  }
  return "PenstockError";
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const penstock::Error& error) {
    nb::object type = nb::module_::import_("penstock.errors").attr(class_name(error.code));
    nb::object exception = type(error.what());
    if (error.code == penstock::ErrorCode::unit_too_large) {
      exception.attr("needed_bytes") = error.needed;
      exception.attr("total_bytes") = error.total;
    }
    PyErr_SetObject(type.ptr(), exception.ptr());
  }
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The core: what touches every byte. Its typed faces are penstock.budget and penstock.loader.";
  nb::set_leak_warnings(false);  // a program may end while a batch of its own is alive: that is no leak
  nb::register_exception_translator(translate);
  penstock::register_budget(m);
  penstock::register_crc(m);
  penstock::register_decode(m);
  penstock::register_gather(m);
  penstock::register_manifest_text(m);
  penstock::register_transfer(m);
  penstock::register_network(m);
}
