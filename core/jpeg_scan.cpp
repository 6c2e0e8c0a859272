#include "jpeg_scan.h"

namespace penstock {
namespace {

// Numbers of tables are what the file says; libjpeg looks at them later than we do.
template <typename Table>
const Table* table_at(Table* const* tables, int index, int count) {
  return index >= 0 && index < count ? tables[index] : nullptr;
}

}  // namespace

bool JpegScan::begin(const jpeg_decompress_struct& info) {
  const bool baseline = !info.progressive_mode && !info.arith_code && info.data_precision == 8;
  const bool whole = info.comps_in_scan == info.num_components && info.Ss == 0 && info.Se == kBlockSize - 1 &&
                     info.Ah == 0 && info.Al == 0;
  if (!baseline || !whole || info.num_components > Scan::kMostParts) return false;
  for (int c = 0; c < info.num_components; ++c) {
    if (info.cur_comp_info[c] != info.comp_info + c || !assign_part(info, c)) return false;
  }
  const auto width = static_cast<JDIMENSION>(unit_width());
  const uint8_t* data = info.src->next_input_byte;
  scan_.begin(data, data + info.src->bytes_in_buffer, parts_, info.num_components,
              static_cast<int>((info.image_width + width - 1) / width), static_cast<int>(info.restart_interval));
  return true;
}

bool JpegScan::assign_part(const jpeg_decompress_struct& info, int c) {
  const jpeg_component_info& component = info.comp_info[c];
  const JQUANT_TBL* quantization = table_at(info.quant_tbl_ptrs, component.quant_tbl_no, NUM_QUANT_TBLS);
  const JHUFF_TBL* dc = table_at(info.dc_huff_tbl_ptrs, component.dc_tbl_no, NUM_HUFF_TBLS);
  const JHUFF_TBL* ac = table_at(info.ac_huff_tbl_ptrs, component.ac_tbl_no, NUM_HUFF_TBLS);
  if (quantization == nullptr || dc == nullptr || ac == nullptr) return false;
  HuffmanTable& dc_table = dc_tables_[component.dc_tbl_no];
  HuffmanPairs& ac_pairs = ac_pairs_[component.ac_tbl_no];
  if (!dc_table.assign(dc->bits, dc->huffval) || !dc_table.numbers_only()) return false;
  if (!ac_pairs.assign(ac->bits, ac->huffval)) return false;
  for (int i = 0; i < kBlockSize; ++i) {
    if (quantization->quantval[i] > UINT8_MAX) return false;
    quantization_[c][i] = static_cast<int16_t>(quantization->quantval[i]);
  }
  const bool alone = info.num_components == 1;  // then a unit is a block, whatever the sampling factors say
  parts_[c] = {alone ? 1 : component.h_samp_factor, alone ? 1 : component.v_samp_factor, &dc_table, &ac_pairs,
               quantization_[c]};
  return true;
}

}  // namespace penstock
