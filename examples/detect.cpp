// Detect objects with OpenVINO in C++. OpenVINO also resizes, pads and normalises the image, which is
// a PPM file (P6). To read other images, use OpenCV or stb_image. With the pip package openvino:
//
// OV=$(python -c 'import openvino; print(openvino.__path__[0])')
// g++ -std=c++17 -I$OV/include examples/detect.cpp $OV/libs/libopenvino.so.* -Wl,-rpath,$OV/libs -o detect
// ./detect MODEL.xml IMAGE.ppm

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>

std::string meta;  // the metadata, in JSON; class names must not contain quotes

bool has(const std::string& text) { return meta.find(text) != meta.npos; }

std::vector<float> numbers(const std::string& key) {
    std::vector<float> values;
    const char* at = has('"' + key + "\": ") ? &meta[meta.find('"' + key + "\": ") + key.size() + 4] : "";
    for (char* end;; at = end) {
        at += std::strspn(at, "[, ");
        const float value = std::strtof(at, &end);
        if (end == at) return values;
        values.push_back(value);
    }
}

std::string class_name(int64_t label) {
    size_t begin = meta.find("\"classes\": [\"") + 13;
    for (; label > 0; --label) begin = meta.find("\", \"", begin) + 4;
    return meta.substr(begin, std::min(meta.find("\", \"", begin), meta.find("\"]", begin)) - begin);
}

void require(bool condition, const std::string& message) {
    if (!condition) throw std::runtime_error(message);
}

int main(int count, char** arguments) try {
    require(count == 3, "usage: detect MODEL.xml IMAGE.ppm");
    const std::string file = arguments[1], picture = arguments[2];
    require(std::ifstream(file).good(), "'" + file + "' cannot be opened");
    ov::Core core;
    auto model = core.read_model(file);
    require(model->has_rt_info("evit_mm"), "'" + file + "' was not written by tools/export.py");
    meta = model->get_rt_info<std::string>("evit_mm");
    const auto scale = numbers("scale"), pad_to = numbers("pad_to"), pad_pixel = numbers("pad_pixel");
    require(has("\"labels\""), "'" + file + "' does not contain NMS");
    require(has("\"type\": \"LoadImageFromFile\"") && has("\"color_type\": \"color\"") &&
                has("\"imdecode_backend\": \"cv2\"") && !pad_pixel.empty() &&
                std::equal(pad_pixel.begin() + 1, pad_pixel.end(), pad_pixel.begin()) &&
                meta[meta.find('}', meta.find("\"reader\": ")) + 1] == ']',  // one step
            "'" + file + "' does not take RGB images of 8 bits, padded with one value");

    std::ifstream input(picture, std::ios::binary);
    std::string type;
    int w = 0, h = 0, most = 0;
    input >> type >> w >> h >> most;
    require(type == "P6" && w > 0 && h > 0 && most == 255, "'" + picture + "' is not a PPM file of type P6");
    ov::Tensor image(ov::element::u8, {1, size_t(h), size_t(w), 3});
    input.ignore(1).read(static_cast<char*>(image.data()), image.get_byte_size());
    require(bool(input), "'" + picture + "' is incomplete");

    float across = scale[0] / w, down = scale[1] / h;
    if (has("\"keep_ratio\": true"))
        across = down = std::min(std::max(scale[0], scale[1]) / std::max(w, h),
                                 std::min(scale[0], scale[1]) / std::min(w, h));
    const int new_w = w * across + 0.5f, new_h = h * down + 0.5f;
    int size_w = new_w, size_h = new_h;  // with the padding that counts as a part of the image
    if (has("\"pad_to\": \"square\"")) size_w = size_h = std::max(new_w, new_h);
    if (pad_to.size() == 2) size_w = pad_to[0], size_h = pad_to[1];
    const int divisor = numbers("pad_size_divisor").at(0);
    const int more_w = (divisor - size_w % divisor) % divisor, more_h = (divisor - size_h % divisor) % divisor;

    namespace pp = ov::preprocess;
    pp::PrePostProcessor processor(model);
    auto& info = processor.input("image");
    info.tensor().set_from(image).set_layout("NHWC").set_color_format(pp::ColorFormat::RGB);
    info.model().set_layout("NCHW");
    if (has("\"channels\": \"BGR\"")) info.preprocess().convert_color(pp::ColorFormat::BGR);
    info.preprocess()
        .resize(pp::ResizeAlgorithm::RESIZE_LINEAR, new_h, new_w)
        .convert_element_type(ov::element::f32)
        .pad({0, 0, 0, 0}, {0, size_h - new_h, size_w - new_w, 0}, pad_pixel[0], pp::PaddingMode::CONSTANT)
        .mean(numbers("mean"))
        .scale(numbers("std"))
        .pad({0, 0, 0, 0}, {0, more_h, more_w, 0}, numbers("pad_value").at(0), pp::PaddingMode::CONSTANT);

    // by default, OpenVINO computes in bfloat16 if the processor supports it
    const auto precision = ov::hint::inference_precision(ov::element::f32);
    auto request = core.compile_model(processor.build(), "CPU", precision).create_infer_request();
    float size[] = {float(size_h), float(size_w)};
    request.set_tensor("image", image);
    request.set_tensor("size", ov::Tensor(ov::element::f32, {1, 2}, size));
    request.infer();
    const auto box = request.get_tensor("boxes"), score = request.get_tensor("scores");
    const auto* label = request.get_tensor("labels").data<int64_t>();
    for (size_t i = 0; i < score.get_size() && score.data<float>()[i] > 0; ++i) {
        std::cout << class_name(label[i]) << ' ' << score.data<float>()[i];
        for (size_t k = 0; k < 4; ++k)
            std::cout << ' ' << box.data<float>()[4 * i + k] * (k % 2 ? float(h) / new_h : float(w) / new_w);
        std::cout << '\n';
    }
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
